//! What is shared with the programs: maps, two of them as memory, and the grace between changes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use pybalancer_core::flow::Secret;

use crate::error::{PacketError, refused};
use crate::grace::{Grace, wait_for_packets};
use crate::layout::{
    self, BACKEND_WORDS, HOP_WORDS, INTERFACE_TRIES, INTERFACE_WORD, LAYOUT, LIVE_WORD, MAX_ID,
    MAX_INTERFACES, ME_WORD,
};
use crate::loader::{self, Maps};
use crate::sys::{self, Shared};

/// Maps, and what is known of them.
pub struct Kernel {
    /// All of them.
    pub maps: Maps,
    /// Between changes.
    pub grace: Grace,
    /// CPUs that per-CPU values have parts for.
    pub cpus: usize,
    settings: Shared,
    backends: Shared,
    /// When each backend changed last.
    flips: Vec<u64>,
}

impl Kernel {
    /// Of maps that are there.
    pub fn open(maps: Maps) -> Result<Kernel, PacketError> {
        let ids = usize::from(MAX_ID) + 1;
        let settings =
            Shared::map(&maps.settings, LAYOUT[0] as usize).map_err(refused("map the settings"))?;
        let backends = Shared::map(&maps.backends, ids * BACKEND_WORDS * 4)
            .map_err(refused("map the backends"))?;
        let mut grace = Grace::default();
        // A process before may have flipped anything just now.
        let flips = vec![grace.flipped(); ids];
        Ok(Kernel {
            cpus: loader::possible_cpus()?,
            maps,
            grace,
            settings,
            backends,
            flips,
        })
    }

    /// Key and size: only before packets come.
    pub fn set_key(&self, secret: &Secret, size: u32) {
        self.settings.write(0, &layout::settings(secret, size));
    }

    /// Whether the maps belong to this secret and size.
    pub fn is_of(&self, secret: &Secret, size: u32) -> bool {
        let wanted = layout::settings(secret, size);
        let words = wanted.chunks_exact(4).zip(0..);
        words.fold(true, |same, (four, index)| {
            same & (word(&self.settings, index).to_ne_bytes() == four)
        })
    }

    /// Which backend this host is.
    pub fn set_me(&self, id: u16) {
        if let Some(place) = self.settings.word(ME_WORD) {
            place.store(u32::from(id), Ordering::Release);
        }
    }

    /// The words of an interface, or with 0 of an empty place for it.
    fn interface(&self, number: u32, wanted: u32) -> Option<usize> {
        let place = |step| ((number + step) % MAX_INTERFACES) as usize * 3 + INTERFACE_WORD;
        (0..INTERFACE_TRIES)
            .map(place)
            .find(|at| word(&self.settings, *at) == wanted)
    }

    /// Handle what comes by an interface for this MAC.
    pub fn set_interface(&self, number: u32, mac: [u8; 6]) -> Result<(), PacketError> {
        let found = self.interface(number, number);
        let at = found.or_else(|| self.interface(number, 0)).ok_or_else(|| {
            PacketError::new("too many interfaces have a program: detach it from one of them")
        })?;
        let index = self
            .settings
            .word(at)
            .ok_or_else(|| PacketError::new("the settings are too short"))?;
        let mac = layout::interface(mac);
        let mut words = mac.chunks_exact(4).zip(at + 1..);
        let same = words.all(|(four, place)| four == word(&self.settings, place).to_ne_bytes());
        if found.is_none() || !same {
            // While the MAC is written the interface is nobody's, and its packets go to the stack.
            index.store(0, Ordering::SeqCst);
            self.settings.write(at + 1, &mac);
            index.store(number, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Leave what comes by other interfaces than these alone: their places are free for others.
    pub fn keep_interfaces(&self, kept: &BTreeSet<u32>) {
        let places = (0..MAX_INTERFACES as usize).map(|place| place * 3 + INTERFACE_WORD);
        for index in places.filter_map(|at| self.settings.word(at)) {
            if !kept.contains(&index.load(Ordering::Relaxed)) {
                index.store(0, Ordering::SeqCst);
            }
        }
    }

    /// Which of a service's two tables is live.
    pub fn live(&self, number: u32) -> Result<&AtomicU32, PacketError> {
        crate::services::check_number(number)?;
        self.settings
            .word(LIVE_WORD + number as usize)
            .ok_or_else(|| PacketError::new("the settings are too short"))
    }

    /// Note a service, number and MTU, where programs look first; None if it has gone. Nothing happens if its
    /// place is another's: then programs look into the map.
    pub fn set_near(&self, key: &[u8; 20], service: Option<(u32, u32)>) -> Result<(), PacketError> {
        let at = layout::near(key);
        let same = (at..)
            .zip(key.chunks_exact(4))
            .all(|(index, four)| word(&self.settings, index).to_ne_bytes() == four);
        let taken = word(&self.settings, at + 5) != 0;
        let Some(place) = self.settings.word(at + 5).filter(|_| same || !taken) else {
            return Ok(());
        };
        let Some((number, mtu)) = service else {
            if same {
                place.store(0, Ordering::Release);
            }
            return Ok(());
        };
        if !same && (at..at + 5).any(|index| word(&self.settings, index) != 0) {
            // Some packet may have compared the key of before, and not yet read whose it is.
            wait_for_packets().map_err(refused("wait for packets under way"))?;
        }
        if !same {
            self.settings.write(at, key);
        }
        self.settings.write(at + 6, &mtu.to_ne_bytes());
        place.store(number + 1, Ordering::Release);
        Ok(())
    }

    /// Whether a backend has a way.
    pub fn knows(&self, id: u16) -> bool {
        // Its flags, behind two MACs and the interface.
        word(&self.backends, self.live_hop(id) + 4) & 1 == 1
    }

    /// The address of a backend that has a way.
    pub fn address(&self, id: u16) -> Option<IpAddr> {
        let at = self.live_hop(id) + 5;
        let mut bytes = [0; 16];
        for (four, index) in bytes.chunks_exact_mut(4).zip(at..) {
            four.copy_from_slice(&word(&self.backends, index).to_ne_bytes());
        }
        self.knows(id).then(|| layout::address_of(bytes))
    }

    /// The word where the hop begins that packets to a backend take.
    fn live_hop(&self, id: u16) -> usize {
        let at = usize::from(id) * BACKEND_WORDS;
        at + 2 + (word(&self.backends, at) as usize & 1) * HOP_WORDS
    }

    /// Set a backend's way; nothing happens if that is what it was.
    pub fn set_hop(&mut self, id: u16, hop: &[u8]) -> Result<(), PacketError> {
        let at = usize::from(id) * BACKEND_WORDS;
        let live = word(&self.backends, at) & 1;
        let place = |which: u32| at + 2 + which as usize * HOP_WORDS;
        let mut words = hop.chunks_exact(4).zip(place(live)..);
        if words.all(|(four, index)| four == word(&self.backends, index).to_ne_bytes()) {
            return Ok(());
        }
        let Some(flip) = self.flips.get_mut(usize::from(id)) else {
            return Ok(());
        };
        self.grace
            .wait(*flip)
            .map_err(refused("wait for packets under way"))?;
        let other = live ^ 1;
        self.backends.write(place(other), hop);
        if let Some(live) = self.backends.word(at) {
            live.store(other, Ordering::Release);
        }
        *flip = self.grace.flipped();
        Ok(())
    }

    /// A sum over all CPUs of the words of a per-CPU value.
    pub fn sums<const N: usize>(
        &self,
        map: BorrowedFd<'_>,
        index: u32,
    ) -> Result<[u64; N], PacketError> {
        let mut value = vec![0; N * 8 * self.cpus];
        sys::map_lookup(map.as_fd(), &index.to_ne_bytes(), &mut value)
            .map_err(refused("read counters"))?;
        let mut sums = [0_u64; N];
        for (place, eight) in value.chunks_exact(8).enumerate() {
            if let (Some(sum), Ok(eight)) = (sums.get_mut(place % N), eight.try_into()) {
                *sum = sum.wrapping_add(u64::from_ne_bytes(eight));
            }
        }
        Ok(sums)
    }
}

fn word(shared: &Shared, index: usize) -> u32 {
    shared
        .word(index)
        .map_or(0, |word| word.load(Ordering::Relaxed))
}
