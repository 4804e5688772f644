//! Who has said and heard what, and what was promised: every invariant is checked here, in the moment in
//! which something happens. A breach is a panic; the seed tells the rest.

use std::collections::BTreeSet;
use std::time::Duration;

use pybalancer_core::reattach::{SERVICE_RESTART, SMALL};
use pybalancer_core::time::Tick;

use crate::frames::Message;
use crate::heads::{name, resumed};
use crate::told::Told;

/// A client's connection, from its handshake to its end.
#[derive(Debug, Default)]
pub struct Connection {
    /// It goes on elsewhere when its backend goes away.
    pub reattaches: bool,
    /// The handshake, as its first backend got it.
    pub head: Option<String>,
    /// Messages that the client has said.
    pub said: u32,
    /// Messages that backends have had.
    pub had: u32,
    /// Its backends, one after the other.
    pub sessions: Vec<Session>,
    /// Which of them the client hears now, and how many of that one's messages it has heard.
    hears: (usize, u32),
    /// Something may be missing: a backend or the client broke off, or time ran out.
    pub lossy: bool,
    /// The client is rude or slow: its end may be an abort.
    pub excused: bool,
    /// Codes that it may be closed with.
    codes: BTreeSet<u16>,
    /// It has had a Close.
    pub closed: Option<u16>,
    /// It is over for the client.
    pub over: bool,
    /// Handshakes since it lost its last backend.
    attempts: u32,
    /// The backend that it had last.
    left: Option<usize>,
    /// The session that it has now, or had last.
    attached: usize,
    /// When it lost its backend.
    lost_at: Option<Tick>,
    /// Pings of the client that nobody has had or answered, by their number.
    pings: BTreeSet<u32>,
}

/// A connection at one backend.
#[derive(Debug, Default)]
pub struct Session {
    /// Where.
    backend: usize,
    /// Messages that it has said.
    pub said: u32,
    /// The first and the last of the client's messages that it has had.
    had: Option<(u32, u32)>,
    /// It has gone in a way that nobody planned.
    pub broke: bool,
    /// It has said a frame that is not kept whole.
    pub large: bool,
    /// The code of its Close.
    pub closed: Option<u16>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By number.
    pub connections: Vec<Connection>,
    /// By number.
    pub orders: Vec<Told>,
    /// Nothing goes wrong in this scenario, and there is always another backend: then nobody notices a move.
    pub calm: bool,
    /// Handshakes that may fail, and the time that there is.
    pub tries: u32,
    /// For finding another backend.
    pub timeout: Duration,
    /// The connection whose story is told, to find out what went wrong.
    pub traced: Option<u32>,
    /// Events of note, for the sum of all seeds: a simulation in which nothing happens proves nothing.
    pub seen: crate::Seen,
}

impl Ledger {
    /// Tell what happens to a connection, if its story is asked for.
    pub fn note(&self, connection: u32, now: Tick, what: impl FnOnce() -> String) {
        if self.traced == Some(connection) {
            println!("{:10.6} {}", now.0 as f64 / 1e9, what());
        }
    }

    /// A client begins.
    pub fn connect(&mut self, reattaches: bool, excused: bool) -> u32 {
        self.connections.push(Connection {
            reattaches,
            excused,
            lossy: excused,
            ..Connection::default()
        });
        self.connections.len() as u32 - 1
    }

    /// Of this connection.
    pub fn of(&mut self, connection: u32) -> &mut Connection {
        &mut self.connections[connection as usize]
    }

    /// A backend has got a handshake. `resumed`: what the field of the balancer says.
    pub fn handshake(&mut self, connection: u32, head: &str, backend: &str, now: Tick) {
        let (tries, timeout) = (self.tries, self.timeout);
        let one = self.of(connection);
        let (plain, field) = resumed(head);
        let Some((previous, attempt)) = field else {
            assert!(
                one.sessions.is_empty(),
                "a second first handshake at {backend}"
            );
            one.head = Some(plain);
            return;
        };
        let last = one.left.map(name);
        assert!(one.reattaches, "a repeated handshake that nobody asked for");
        assert_eq!(
            one.head.as_ref(),
            Some(&plain),
            "a handshake is repeated as recorded"
        );
        assert_eq!(
            Some(previous),
            last,
            "the previous backend of connection {connection}"
        );
        one.attempts += 1;
        assert!(
            attempt >= one.attempts,
            "attempt {attempt} is counted, {} came",
            one.attempts
        );
        one.attempts = attempt;
        assert!(attempt <= tries, "attempt {attempt} of {tries}");
        let lost = one.lost_at.unwrap_or(now);
        // Delays of the network come on top.
        let slack = timeout + Duration::from_millis(700);
        assert!(
            now.since(lost) <= slack,
            "a handshake {:?} after the loss",
            now.since(lost)
        );
        self.seen.repeated += 1;
    }

    /// A backend has answered with a 101: this is its session's number.
    pub fn open(&mut self, connection: u32, backend: usize) -> u32 {
        let one = self.of(connection);
        one.sessions.push(Session {
            backend,
            ..Session::default()
        });
        one.sessions.len() as u32 - 1
    }

    /// The balancer has let go of a backend.
    pub fn detached(&mut self, connection: u32, backend: Option<u16>, now: Tick) {
        let one = self.of(connection);
        one.left = backend.map(usize::from);
        (one.attempts, one.lost_at) = (0, Some(now));
    }

    /// It looks no longer, since it is at this backend, or at none.
    pub fn settled(&mut self, connection: u32, at: Option<u16>) {
        let one = self.of(connection);
        one.lost_at = None;
        if let Some(at) = at {
            let here = |session: &Session| session.backend == usize::from(at);
            one.attached = one.sessions.iter().rposition(here).unwrap_or_default();
            self.seen.moved += 1;
        }
    }

    /// The client says its next message.
    pub fn client_says(&mut self, connection: u32) -> Message {
        let one = self.of(connection);
        one.said += 1;
        Message {
            connection,
            session: 0,
            number: one.said - 1,
            from_client: true,
        }
    }

    /// A backend says its next.
    pub fn backend_says(&mut self, connection: u32, session: u32, length: usize) -> Message {
        let one = &mut self.of(connection).sessions[session as usize];
        one.said += 1;
        // The longest header, or a ping, comes on top.
        one.large |= length as u64 + 32 > SMALL;
        Message {
            connection,
            session,
            number: one.said - 1,
            from_client: false,
        }
    }

    /// A backend has had a message. What was under way to the one before may come later than what the next
    /// one got, but it was said earlier.
    pub fn backend_hears(&mut self, connection: u32, session: u32, message: Message) {
        let one = self.of(connection);
        let number = message.number;
        assert!(
            message.from_client && message.connection == connection,
            "another's: {message:?}"
        );
        assert!(number < one.said, "never said: {message:?}");
        let (lossy, place) = (one.lossy, session as usize);
        let before = one.sessions[..place]
            .iter()
            .filter_map(|session| session.had)
            .map(|had| had.1)
            .max();
        let after = one.sessions[place + 1..]
            .iter()
            .filter_map(|session| session.had)
            .map(|had| had.0)
            .min();
        let (first, last) = one.sessions[place].had.unwrap_or((number, number));
        let again = one.sessions[place].had.is_some() && number <= last;
        let ordered =
            before.is_none_or(|before| before < number) && after.is_none_or(|after| number < after);
        assert!(
            ordered && !again,
            "connection {connection}: twice, or out of order: {message:?}"
        );
        assert!(
            lossy || number <= last + 1,
            "connection {connection}: lost before {message:?}"
        );
        one.sessions[place].had = Some((first, number));
        one.had += 1;
        self.seen.messages += 1;
    }

    /// A client has heard a message.
    pub fn client_hears(&mut self, connection: u32, message: Message) {
        let one = self.of(connection);
        assert!(
            !message.from_client && message.connection == connection,
            "another's: {message:?}"
        );
        let session = message.session as usize;
        assert!(
            session >= one.hears.0,
            "of a backend that was left: {message:?}"
        );
        if session > one.hears.0 {
            one.all_heard(connection);
            one.hears = (session, 0);
        }
        assert_eq!(
            message.number, one.hears.1,
            "twice, lost, or out of order: {message:?}"
        );
        assert!(message.number < one.sessions[session].said);
        one.hears.1 += 1;
        self.seen.messages += 1;
    }

    /// A ping of the client's, by its number.
    pub fn client_pings(&mut self, connection: u32, number: u32) {
        self.of(connection).pings.insert(number);
    }

    /// A backend has had it, or its answer has come.
    pub fn ping_is_known(&mut self, connection: u32, number: u32) {
        self.of(connection).pings.remove(&number);
    }

    /// A client has had a Close.
    pub fn client_closed(&mut self, connection: u32, code: u16) {
        let calm = self.calm;
        let one = self.of(connection);
        // What its backend says in leaving is not for a client that goes on elsewhere.
        let unnoticed = calm && one.reattaches && !one.excused;
        let said = one.sessions.last().and_then(|session| session.closed);
        let backends = said == Some(code) && !unnoticed;
        let failed = code == SERVICE_RESTART && one.reattaches && (one.excused || !calm);
        assert!(
            one.codes.contains(&code) || backends || failed,
            "connection {connection}: Close {code} was not promised (ordered: {:?}, re-attaches: {})",
            one.codes,
            one.reattaches
        );
        one.closed = Some(code);
        self.seen.closed += 1;
    }

    /// A client's stream has ended without a Close. `within`: a frame of so many bytes is not complete.
    pub fn client_cut(&mut self, connection: u32, within: Option<usize>) {
        let one = self.of(connection);
        one.over = true;
        self.seen.cut += 1;
        let one = &self.connections[connection as usize];
        if one.excused || one.sessions.is_empty() {
            return;
        }
        let session = &one.sessions[one.sessions.len() - 1];
        // Where nothing re-attaches, the client sees what its backend did.
        // But one that was told to go hears why, if its backend did not break off within a frame.
        let tellable = !one.codes.is_empty() && within.is_none();
        let passed_on = session.broke && !one.reattaches && !tellable;
        let large = within.is_some_and(|size| size as u64 > SMALL) || session.large;
        let within_large = large && (session.broke || one.lossy);
        assert!(
            passed_on || within_large,
            "connection {connection}: 1006 was not promised: within {within:?}, {session:?}, re-attaches: {}",
            one.reattaches
        );
    }

    /// A drain or shed of so many tunnels begins.
    pub fn order(&mut self, count: usize, over: Duration, rate: f64) -> usize {
        self.orders.push(Told::new(count, over, rate));
        self.orders.len() - 1
    }

    /// This connection may be closed with that code from now on.
    pub fn promise(&mut self, connection: u32, code: u16) {
        self.of(connection).codes.insert(code);
    }

    /// A tunnel is told to go.
    pub fn told(&mut self, order: usize, now: Tick) {
        self.orders[order].tell(now);
        self.seen.told += 1;
    }

    /// Everything has come to rest: what was said has been heard.
    pub fn close(&mut self) {
        for (number, one) in self.connections.iter().enumerate() {
            if one.closed.is_none() && !one.over && one.lost_at.is_none() && !one.excused {
                one.all_heard(number as u32);
                let silent = one
                    .sessions
                    .get(one.attached)
                    .is_none_or(|session| session.said == 0);
                let current = one.attached == one.hears.0 || silent || one.lossy;
                assert!(
                    current,
                    "connection {number}: nothing heard of its last backend"
                );
                if !one.lossy {
                    assert_eq!(one.had, one.said, "connection {number}: had and said");
                    assert!(
                        one.pings.is_empty(),
                        "connection {number}: {:?} unanswered",
                        one.pings
                    );
                }
            }
            let by_us = one.closed.is_some_and(|code| one.codes.contains(&code));
            if by_us && !one.lossy && !one.excused {
                assert_eq!(
                    one.had, one.said,
                    "connection {number}, closed: had and said"
                );
            }
        }
        self.orders.iter().for_each(Told::close);
    }
}

impl Connection {
    /// All that the current backend has said.
    fn all_heard(&self, number: u32) {
        let Some(session) = self.sessions.get(self.hears.0) else {
            return;
        };
        let complete = session.said == self.hears.1 || session.broke || self.lossy;
        assert!(
            complete,
            "connection {number}: {} said, {} heard by the client: {session:?}",
            session.said, self.hears.1
        );
    }
}
