//! Rows of packet mode: who owns a slot, and who owned it before.
//!
//! A packet that finds no socket at the owner goes on to the former owners, one after the other. Which
//! those are follows from **generations**: the sets of backends of before, newest first. Every host
//! keeps its own history, so rows of two hosts may differ in whom they name after the owner; that
//! chains lead to the right host all the same is shown in docs/architecture.md.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::fmt;
use core::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};

use crate::flow::Secret;
use crate::maglev::{Table, TableError};
use crate::reach::reach;

/// Entries of a row: the owner and up to five former ones. Six ids of 10 bits are one word, which a packet reads
/// whole.
pub const WIDTH: usize = 6;
/// Generations that rows are made of. More than a row has entries: most changes leave most slots alone, so
/// a slot's few owners may come from many generations (a rolling restart makes two for each backend).
pub const MAX_GENERATIONS: usize = 16;
/// Ids are from 1 to this; 0 is nobody.
pub const MAX_ID: u16 = 1023;

/// Name, weight, id.
pub type Member<'a> = (&'a str, u32, u16);

/// What a backend knows besides generations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen<'a> {
    /// Its id; 0 is a director, which knows nothing else.
    pub me: u16,
    /// Those among which it has begun, itself too, if it was told of nothing before: so it supposes, see [`crate::reach`].
    /// Those of weight 0 may have flows from when they had some.
    pub joined: &'a [Member<'a>],
    /// Ids of those who do not answer.
    pub late: &'a [u16],
}

/// Why there are no rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowsError {
    /// None at all, or more than [`MAX_GENERATIONS`].
    Generations(usize),
    /// Not from 1 to [`MAX_ID`].
    Id(u16),
    /// A table cannot be built.
    Table(TableError),
}

impl fmt::Display for RowsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RowsError::Generations(count) => {
                write!(
                    f,
                    "rows are made of 1 to {MAX_GENERATIONS} generations, not {count}"
                )
            }
            RowsError::Id(id) => write!(f, "ids of backends are from 1 to {MAX_ID}, not {id}"),
            RowsError::Table(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for RowsError {}

/// The rows of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    rows: Vec<[u16; WIDTH]>,
    moved: u32,
    digest: u128,
    owners: u128,
}

impl Rows {
    /// Of generations, newest first. Weight 0 owns nothing.
    ///
    /// A row names each backend once. Its first entry is the newest generation's owner; 0 if there is
    /// none, and then only the others follow: nobody takes new flows, somebody may have old ones.
    ///
    /// With `seen.joined` there may be others behind those whom generations name: who would have had the slot if some
    /// of the joined were not there, in the order in which they would: where `seen.me` has come into a slot, and where
    /// one is named who is late.
    ///
    /// Those who are `seen.late` are asked behind the others whom their row names, the owner too: a machine that has died
    /// swallows what gets to it, so whoever else may have a connection is asked before.
    pub fn build(
        secret: &Secret,
        generations: &[&[Member<'_>]],
        seen: Seen<'_>,
        size: u32,
    ) -> Result<Rows, RowsError> {
        if generations.is_empty() || generations.len() > MAX_GENERATIONS {
            return Err(RowsError::Generations(generations.len()));
        }
        // A name may have had another id before (it moved to another host), and an id another name.
        check_ids(generations.iter().copied().flatten())?;
        let tables = generations
            .iter()
            .map(|members| {
                let named: Vec<(&str, u32)> = members
                    .iter()
                    .map(|(name, weight, _)| (*name, *weight))
                    .collect();
                Table::build(secret, &named, size).map_err(RowsError::Table)
            })
            .collect::<Result<Vec<Table>, RowsError>>()?;
        let mut rows = alloc::vec![[0_u16; WIDTH]; size as usize];
        for (number, (members, table)) in generations.iter().zip(&tables).enumerate() {
            let ids: Vec<u16> = members.iter().map(|(_, _, id)| *id).collect();
            for (row, index) in rows.iter_mut().zip(table.slots()) {
                let id = ids.get(usize::from(*index)).copied().unwrap_or(0);
                if number == 0 {
                    let [first, ..] = row;
                    *first = id;
                } else if !row.contains(&id) {
                    // Where there is no room, the oldest owners are forgotten. The first place is the newest's.
                    if let Some(place) = row.iter_mut().skip(1).find(|place| **place == 0) {
                        *place = id;
                    }
                }
            }
        }
        let moved = match (generations, tables.as_slice()) {
            ([new, old, ..], [newest, former, ..]) => moved(new, newest, old, former),
            _ => 0,
        };
        let owners = tables.first().map_or(0, Table::digest);
        let mut digest = digest(&tables);
        if !seen.joined.is_empty() {
            check_ids(seen.joined.iter())?;
            digest = suppose(&mut rows, secret, seen, digest)?;
        }
        if !seen.late.is_empty() {
            put_behind(&mut rows, seen);
            let sets = generations.iter().copied().chain([seen.joined]);
            digest = with_late(digest, seen, sets);
        }
        Ok(Rows {
            rows,
            moved,
            digest,
            owners,
        })
    }

    /// One for each slot.
    pub fn rows(&self) -> &[[u16; WIDTH]] {
        &self.rows
    }

    /// Slots whose owner is not that of the former generation.
    pub fn moved(&self) -> u32 {
        self.moved
    }

    /// A fingerprint of all generations: equal on hosts with equal rows. Knows names, not ids.
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// A fingerprint of the newest generation, that of its [`Table`]: equal where new flows go to
    /// the same backends, whatever the hosts have seen before.
    pub fn owners(&self) -> u128 {
        self.owners
    }
}

fn check_ids<'a>(mut members: impl Iterator<Item = &'a Member<'a>>) -> Result<(), RowsError> {
    match members.find(|(_, _, id)| *id == 0 || *id > MAX_ID) {
        Some((_, _, id)) => Err(RowsError::Id(*id)),
        None => Ok(()),
    }
}

/// Fill free places with who may have had the slots before all of `joined` were there; the digest with what that
/// was made of.
fn suppose(
    rows: &mut [[u16; WIDTH]],
    secret: &Secret,
    seen: Seen<'_>,
    digest: u128,
) -> Result<u128, RowsError> {
    let size = rows.len() as u32;
    let named = |weigh: fn(u32) -> u32| -> Vec<(&str, u32)> {
        let members = seen.joined.iter();
        members
            .map(|(name, weight, _)| (*name, weigh(*weight)))
            .collect()
    };
    let (active, idle) = (
        named(|weight| weight),
        named(|weight| u32::from(weight == 0)),
    );
    let id = |index: &u16| seen.joined.get(usize::from(*index)).map(|(_, _, id)| *id);
    let gone = |id: &u16| seen.late.contains(id);
    let table = Table::build(secret, &active, size).map_err(RowsError::Table)?;
    let orders = reach(secret, &active, size);
    for ((row, order), owner) in rows.iter_mut().zip(&orders).zip(table.slots()) {
        let here = order.iter().position(|index| id(index) == Some(seen.me));
        if id(owner) == Some(seen.me) {
            for id in order.iter().filter_map(id).filter(|id| *id != seen.me) {
                put(row, id);
            }
        } else if let (Some(here), [_, 0, ..]) = (here, &row) {
            // An owner that has come with this one may ask it, and it knows no more than whose turn is next.
            let mut behind = order.iter().skip(here + 1).filter_map(id);
            if let Some(id) = behind.find(|id| !row.contains(id)) {
                put(row, seen.me);
                put(row, id);
            }
        }
        if row.iter().any(gone) {
            // Who is gone cannot be asked whom it had the slot from.
            for id in order.iter().filter_map(id) {
                put(row, id);
            }
        }
    }
    // Who takes no flows had as many as others, perhaps. There is room for them beside few others only.
    let takers = active.iter().filter(|(_, weight)| *weight > 0).count();
    if takers < WIDTH.min(active.len()) {
        let orders = reach(secret, &idle, size);
        for ((row, order), owner) in rows.iter_mut().zip(&orders).zip(table.slots()) {
            if id(owner) == Some(seen.me) {
                for id in order.iter().filter_map(id) {
                    put(row, id);
                }
            }
        }
    }
    let mut hasher = SipHasher24::new_with_key(b"pybalancer  join");
    hasher.write(&digest.to_le_bytes());
    hasher.write(&table.digest().to_le_bytes());
    for (name, _, _) in seen.joined.iter().filter(|(_, _, id)| *id == seen.me) {
        hasher.write(name.as_bytes());
    }
    Ok(hasher.finish128().as_u128())
}

/// At the first free place behind the owner's, unless it is there.
fn put(row: &mut [u16; WIDTH], id: u16) {
    if !row.contains(&id)
        && let Some(place) = row.iter_mut().skip(1).find(|place| **place == 0)
    {
        *place = id;
    }
}

/// So that the late ones are asked behind the others. Among themselves they keep their order, and so do the others.
fn put_behind(rows: &mut [[u16; WIDTH]], seen: Seen<'_>) {
    let mut late = [false; MAX_ID as usize + 1];
    for id in seen.late {
        if let Some(place) = late.get_mut(usize::from(*id)) {
            *place = true;
        }
    }
    let late = |id: u16| late.get(usize::from(id)).copied().unwrap_or(false);
    // Where nobody takes new flows the first place stays empty.
    for row in rows.iter_mut().filter(|row| !matches!(row, [0, ..])) {
        row.sort_by_key(|id| (*id == 0, late(*id)));
        // Whoever is in its row goes on behind itself, and round: so the last are those before it.
        let place = |is: &dyn Fn(u16) -> bool| row.iter().position(|id| is(*id));
        let end = place(&|id| id == 0).unwrap_or(WIDTH);
        if let (Some(me), Some(first)) = (place(&|id| id == seen.me), place(&late))
            && (1..first).contains(&me)
            && let Some(part) = row.get_mut(me..end)
        {
            part.rotate_left(first - me);
        }
    }
}

fn with_late<'a>(
    digest: u128,
    seen: Seen<'_>,
    sets: impl Iterator<Item = &'a [Member<'a>]>,
) -> u128 {
    // The backend itself is among them: the place of the others depends on its own.
    let named: BTreeSet<(bool, &str)> = sets
        .flatten()
        .filter(|(_, _, id)| *id == seen.me || seen.late.contains(id))
        .map(|(name, _, id)| (*id == seen.me, *name))
        .collect();
    let mut hasher = SipHasher24::new_with_key(b"pybalancer  late");
    hasher.write(&digest.to_le_bytes());
    for (me, name) in named {
        hasher.write(&[u8::from(me)]);
        hasher.write(name.as_bytes());
        hasher.write(&[0]);
    }
    hasher.finish128().as_u128()
}

fn moved(new: &[Member<'_>], newest: &Table, old: &[Member<'_>], former: &Table) -> u32 {
    let id = |members: &[Member<'_>], table: &Table, slot: usize| {
        let index = table.slots().get(slot)?;
        members.get(usize::from(*index)).map(|(_, _, id)| *id)
    };
    let differs = |slot: &usize| id(new, newest, *slot) != id(old, former, *slot);
    (0..newest.size() as usize).filter(differs).count() as u32
}

fn digest(tables: &[Table]) -> u128 {
    let mut hasher = SipHasher24::new_with_key(b"pybalancer  rows");
    for table in tables {
        hasher.write(&table.digest().to_le_bytes());
    }
    hasher.finish128().as_u128()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::format;
    use std::string::String;

    const SIZE: u32 = 1021;

    fn secret() -> Secret {
        Secret::from_bytes([3; 16])
    }

    fn set<'a>(names: &'a [String], members: &[(usize, u32)]) -> Vec<Member<'a>> {
        members
            .iter()
            .map(|(index, weight)| (names[*index].as_str(), *weight, *index as u16 + 1))
            .collect()
    }

    fn names() -> Vec<String> {
        (0..12).map(|number| format!("app-{number}")).collect()
    }

    proptest! {
        #[test]
        fn rows_name_owners_newest_first_and_once(
            sets in prop::collection::vec(prop::collection::btree_map(0..12_usize, 0..4_u32, 0..10), 1..8)
        ) {
            let names = names();
            let generations: Vec<Vec<Member>> = sets
                .iter()
                .map(|members| set(&names, &members.iter().map(|(i, w)| (*i, *w)).collect::<Vec<_>>()))
                .collect();
            let borrowed: Vec<&[Member]> = generations.iter().map(Vec::as_slice).collect();
            let rows = Rows::build(&secret(), &borrowed, Seen::default(), SIZE).unwrap();
            let owners: Vec<Vec<u16>> = generations
                .iter()
                .map(|members| {
                    let named: Vec<(&str, u32)> = members.iter().map(|(n, w, _)| (*n, *w)).collect();
                    let table = Table::build(&secret(), &named, SIZE).unwrap();
                    table.slots().iter().map(|index| members[usize::from(*index)].2).collect()
                })
                .collect();
            for (slot, row) in rows.rows().iter().enumerate() {
                let mut expected = std::vec![owners[0].get(slot).copied().unwrap_or(0)];
                for generation in &owners[1..] {
                    if let Some(id) = generation.get(slot).filter(|id| !expected.contains(id)) {
                        expected.push(*id);
                    }
                }
                expected.resize(WIDTH, 0);
                prop_assert_eq!(row.as_slice(), expected.as_slice());
            }
        }
    }

    #[test]
    fn what_moved_is_what_has_another_owner() {
        let names = names();
        let (new, old) = (
            set(&names, &[(0, 1), (1, 1)]),
            set(&names, &[(0, 1), (1, 1), (2, 1)]),
        );
        let rows = Rows::build(&secret(), &[&new, &old], Seen::default(), SIZE).unwrap();
        let with_former = rows.rows().iter().filter(|row| row[1] != 0).count();
        assert_eq!(rows.moved() as usize, with_former);
        assert!(rows.moved() >= SIZE / 3);
        assert_eq!(
            Rows::build(&secret(), &[&new], Seen::default(), SIZE)
                .unwrap()
                .moved(),
            0
        );
        assert_eq!(
            Rows::build(&secret(), &[&new, &[]], Seen::default(), SIZE)
                .unwrap()
                .moved(),
            SIZE
        );
    }

    #[test]
    fn digests_know_history_and_owners_do_not() {
        let names = names();
        let (one, two) = (set(&names, &[(0, 1), (1, 1)]), set(&names, &[(0, 1)]));
        let build = |generations: &[&[Member]]| {
            Rows::build(&secret(), generations, Seen::default(), SIZE).unwrap()
        };
        let (fresh, grown) = (build(&[&one]), build(&[&one, &two]));
        assert_eq!(fresh.owners(), grown.owners());
        assert_ne!(fresh.digest(), grown.digest());
        // The ids are each host's own.
        let other: Vec<Member> = one.iter().map(|(n, w, id)| (*n, *w, id + 100)).collect();
        assert_eq!(build(&[&other]).digest(), fresh.digest());
    }

    #[test]
    fn a_backend_may_move_to_another_host() {
        let new: Vec<Member> = std::vec![("a", 1, 7)];
        let old: Vec<Member> = std::vec![("a", 1, 1)];
        let rows = Rows::build(&secret(), &[&new, &old], Seen::default(), SIZE).unwrap();
        assert!(rows.rows().iter().all(|row| *row == [7, 1, 0, 0, 0, 0]));
        assert_eq!(rows.moved(), SIZE);
    }

    #[test]
    fn who_has_joined_supposes_of_its_own_slots_who_had_them() {
        let names = names();
        let all: Vec<(usize, u32)> = (0..12).map(|index| (index, 1)).collect();
        let (members, me) = (set(&names, &all), 5);
        let without: Vec<Member> = members.iter().copied().filter(|one| one.2 != me).collect();
        let joined = Seen {
            joined: &members,
            me,
            ..Seen::default()
        };
        let build = |seen| Rows::build(&secret(), &[&members, &without], seen, SIZE).unwrap();
        let (told, supposed) = (build(Seen::default()), build(joined));
        assert_eq!(told.owners(), supposed.owners());
        assert_ne!(told.digest(), supposed.digest());
        let mut asked = 0;
        for (told, row) in told.rows().iter().zip(supposed.rows()) {
            // What was told comes first.
            assert!(
                told.iter()
                    .zip(row)
                    .all(|(told, id)| *told == 0 || told == id)
            );
            if row[0] == me {
                assert!(row.iter().all(|id| *id != 0));
            } else if told[1] == 0 && row[1] != 0 {
                asked += 1;
                assert_eq!((row[1], row[3]), (me, 0));
                assert!(row[2] != 0 && row[2] != row[0]);
            } else {
                assert_eq!(told, row);
            }
        }
        assert!(asked > SIZE / 4);
    }

    #[test]
    fn those_without_weight_are_supposed_last() {
        let names = names();
        let newest = set(&names, &[(0, 1), (1, 1)]);
        let members = set(&names, &[(0, 1), (1, 1), (2, 0), (3, 0)]);
        let joined = Seen {
            joined: &members,
            me: 1,
            ..Seen::default()
        };
        let rows = Rows::build(&secret(), &[&newest], joined, SIZE).unwrap();
        for row in rows.rows().iter().filter(|row| row[0] == 1) {
            assert!(matches!(row, [1, 2, 3, 4, 0, 0] | [1, 2, 4, 3, 0, 0]));
        }
    }

    #[test]
    fn who_is_late_stands_behind_the_others() {
        let names = names();
        let grown = set(&names, &[(0, 1), (1, 1), (2, 1), (3, 1)]);
        let sets: [&[Member]; 3] = [&grown, &grown[..3], &grown[..2]];
        let build = |me, late: &[u16]| {
            let seen = Seen {
                me,
                late,
                ..Seen::default()
            };
            Rows::build(&secret(), &sets, seen, SIZE).unwrap()
        };
        let (told, late) = (build(1, &[]), build(1, &[3, 4]));
        assert_eq!(told.owners(), late.owners());
        assert_ne!(told.digest(), late.digest());
        assert_ne!(late.digest(), build(1, &[3]).digest());
        assert_ne!(late.digest(), build(2, &[3, 4]).digest());
        let mut longest = 0;
        for (told, row) in told.rows().iter().zip(late.rows()) {
            let mut expected: Vec<u16> = told
                .iter()
                .copied()
                .filter(|id| *id < 3 && *id > 0)
                .collect();
            let gone = told.iter().filter(|id| **id > 2);
            // Behind it in the row, and round.
            let at = expected.iter().position(|id| *id == 1).unwrap_or(0);
            let at = if at == 0 { expected.len() } else { at };
            expected.splice(at..at, gone.copied());
            longest = longest.max(expected.len());
            expected.resize(WIDTH, 0);
            assert_eq!(row.as_slice(), expected.as_slice());
        }
        assert!(longest >= 3);
        // Where nobody takes new flows, a director sees it by the first place.
        let nobody = Rows::build(
            &secret(),
            &[&[], &grown],
            Seen {
                late: &[1],
                ..Seen::default()
            },
            SIZE,
        )
        .unwrap();
        assert!(nobody.rows().iter().all(|row| row[0] == 0 && row[1] != 0));
    }

    #[test]
    fn mistakes_are_named() {
        let build = |generations: &[&[Member]]| {
            Rows::build(&secret(), generations, Seen::default(), SIZE).unwrap_err()
        };
        assert_eq!(build(&[]), RowsError::Generations(0));
        let many = std::vec![[].as_slice(); MAX_GENERATIONS + 1];
        assert_eq!(build(&many), RowsError::Generations(MAX_GENERATIONS + 1));
        assert_eq!(build(&[&[("a", 1, 0)]]), RowsError::Id(0));
        assert_eq!(build(&[&[("a", 1, 1024)]]), RowsError::Id(1024));
        let joined = Seen {
            joined: &[("a", 1, 0)],
            me: 1,
            ..Seen::default()
        };
        assert_eq!(
            Rows::build(&secret(), &[&[]], joined, SIZE).unwrap_err(),
            RowsError::Id(0)
        );
        assert_eq!(
            build(&[&[("a", 1, 1), ("a", 1, 1)]]),
            RowsError::Table(TableError::DuplicateName)
        );
    }
}
