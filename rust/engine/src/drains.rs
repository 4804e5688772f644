//! Drains and sheds under way: what the engine, the workers and whoever asks know of each.
//!
//! An order is shared by all workers. Each looks for the tunnels of its own that the order is about; when
//! the next of them is told to go is decided by one number for all ([`Pace`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use pybalancer_core::drain::{Cap, Course, Pace, Terms};
use pybalancer_core::record::Reason;
use pybalancer_core::shed::Quota;
use pybalancer_core::time::Tick;

use crate::registry::{BackendEntry, ListenerEntry};
use crate::tunnel::Tunnel;

/// How long those who are cut may take to read why.
pub const FAREWELL: Duration = Duration::from_secs(1);

/// Why tunnels are told to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Somebody asked for it.
    Drain,
    /// Their backend was removed.
    Removed,
    /// Their backend is down.
    Down,
    /// Their backend has more than its share.
    Shed,
}

/// Whose tunnels.
pub enum Scope {
    /// Of these backends.
    Backends(Vec<Arc<BackendEntry>>),
    /// Of this listener.
    Listener(Arc<ListenerEntry>),
    /// Of these, which are all listeners there are.
    All(Vec<Arc<ListenerEntry>>),
}

/// What somebody asks for.
pub struct Asked<'a> {
    /// Why.
    pub kind: Kind,
    /// Whose tunnels.
    pub scope: Scope,
    /// How.
    pub terms: Terms,
    /// Of a shed: how many of each of the scope's backends.
    pub wanted: &'a [u32],
    /// Of a shed: whether they are only counted.
    pub counts_only: bool,
    /// What all orders of its pool keep to together, per second; 0: nothing. One that was given a higher rate
    /// of its own is none of them.
    pub cap: f64,
}

/// One drain or shed.
pub struct Order {
    /// Counts those of this engine from 1.
    pub id: u64,
    /// Why.
    pub kind: Kind,
    /// Whose.
    pub scope: Scope,
    /// Over which time, up to when, with which code. A shed has no deadline.
    pub terms: Terms,
    /// When it began.
    pub began: Tick,
    /// Of a shed, in the order of the scope's backends.
    pub quotas: Vec<Quota>,
    /// Of a shed: nobody is told to go, it is only counted.
    pub counts_only: bool,
    /// Tunnels there were at the beginning.
    pub total: u64,
    /// The same by the scope's backends.
    pub found: Vec<u64>,
    course: Course,
    /// Tunnels told in time.
    pub closed: AtomicU64,
    /// Tunnels ended at the deadline.
    pub cut: AtomicU64,
    /// Tunnels carried over to another backend.
    pub moved: AtomicU64,
    /// Those of the scope's backends that are taken back, by their place.
    released: Vec<AtomicBool>,
    finished: AtomicUsize,
    /// When it was first seen to be over, in ns; 0 until then.
    over_at: AtomicU64,
}

/// How far an order is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Tunnels are left, and told to go.
    Running,
    /// None are left, or all that was asked for is done.
    Done,
    /// It was called off.
    Cancelled,
}

impl Order {
    /// One that begins at `now`. Where within its interval the first close falls is for `draw` to say.
    pub fn new(id: u64, asked: Asked<'_>, now: Tick, draw: u64) -> Order {
        let Asked {
            kind,
            scope,
            terms,
            wanted,
            counts_only,
            cap,
        } = asked;
        let total = match &scope {
            _ if kind == Kind::Shed => wanted.iter().copied().map(u64::from).sum(),
            scope => scope.left(),
        };
        let released = (0..scope.loads().len()).map(|_| AtomicBool::new(false));
        let released = released.collect();
        let pace = Pace::new(total, terms.over, terms.rate);
        // A shed cuts nothing.
        let deadline = (kind != Kind::Shed).then(|| now + terms.deadline);
        Order {
            id,
            kind,
            terms,
            began: now,
            quotas: wanted.iter().copied().map(Quota::new).collect(),
            counts_only,
            total,
            found: scope.loads(),
            course: Course::new(pace, deadline, now, draw).within(scope.cap(terms.rate, cap)),
            scope,
            closed: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            released,
            finished: AtomicUsize::new(0),
            over_at: AtomicU64::new(0),
        }
    }

    /// Whether it is about this tunnel: which of the scope's backends has it.
    pub fn concerns(&self, tunnel: &Tunnel) -> Option<usize> {
        match &self.scope {
            Scope::Backends(entries) => {
                let of = tunnel.entry.as_ref()?;
                let place = entries.iter().position(|entry| Arc::ptr_eq(entry, of));
                place.filter(|place| !self.is_released(*place))
            }
            Scope::Listener(entry) => Arc::ptr_eq(entry, &tunnel.terms.listener).then_some(0),
            Scope::All(_) => Some(0),
        }
    }

    /// Whether those that can are carried over to another backend instead of being told to go: where it is
    /// about backends. A client of a listener that drains has nowhere else to go.
    pub fn moves(&self) -> bool {
        matches!(self.scope, Scope::Backends(_))
    }

    /// One that was to be carried over has lost its backend, and got no other.
    pub fn lost(&self, now: Tick) {
        let late = self.deadline().is_some_and(|deadline| deadline <= now);
        let count = if late { &self.cut } else { &self.closed };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// When who is told to go, and up to when.
    pub fn course(&self) -> &Course {
        &self.course
    }

    /// When what is left is cut; None for a shed, which cuts nothing.
    pub fn deadline(&self) -> Option<Tick> {
        self.course.deadline()
    }

    /// Why its tunnels end.
    pub fn reason(&self) -> Reason {
        match self.kind {
            Kind::Drain => Reason::Drained,
            Kind::Removed => Reason::BackendRemoved,
            Kind::Down => Reason::BackendDown,
            Kind::Shed => Reason::Shed,
        }
    }

    /// Tunnels left, those that are on their way included; of a shed those still to be told.
    pub fn left(&self) -> u64 {
        if self.kind == Kind::Shed {
            let left = |quota: &Quota| u64::from(quota.left());
            return self.quotas.iter().map(left).sum();
        }
        let Scope::Backends(_) = self.scope else {
            return self.scope.left();
        };
        let loads = self.scope.loads().into_iter().enumerate();
        let held = loads.filter(|(place, _)| !self.is_released(*place));
        held.map(|(_, load)| load).sum()
    }

    fn is_released(&self, place: usize) -> bool {
        (self.released.get(place)).is_some_and(|released| released.load(Ordering::Relaxed))
    }

    /// Take back what the plan says takes tunnels again: a drain is over for it, even if that found nobody.
    pub fn release(&self, takes: impl Fn(&Arc<BackendEntry>) -> bool) {
        let Scope::Backends(entries) = &self.scope else {
            return;
        };
        for (entry, released) in entries.iter().zip(&self.released) {
            if takes(entry) {
                released.store(true, Ordering::Relaxed);
            }
        }
        let mut released = self.released.iter();
        if released.all(|released| released.load(Ordering::Relaxed)) {
            self.cancel();
        }
    }

    /// Call it off: nobody else is told.
    pub fn cancel(&self) {
        self.course.cancel();
    }

    /// Whether it was called off.
    pub fn cancelled(&self) -> bool {
        self.course.cancelled()
    }

    /// A worker has nothing more to do for it.
    pub fn finish(&self) {
        self.finished.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether some of so many `workers` may still tell somebody to go.
    pub fn is_open(&self, workers: usize) -> bool {
        !self.cancelled() && self.finished.load(Ordering::Relaxed) < workers
    }

    /// How far it is, with so many `workers`.
    pub fn state(&self, workers: usize) -> State {
        let finished = self.finished.load(Ordering::Relaxed) >= workers;
        if self.kind != Kind::Shed && self.left() == 0 || finished && !self.cancelled() {
            State::Done
        } else if self.cancelled() {
            State::Cancelled
        } else {
            State::Running
        }
    }

    /// Note that it is over; when that was first seen.
    pub fn over_at(&self, now: Tick) -> Tick {
        let seen = self
            .over_at
            .compare_exchange(0, now.0, Ordering::Relaxed, Ordering::Relaxed);
        Tick(seen.map_or_else(|before| before, |_| now.0))
    }
}

impl Scope {
    /// What an order of this `rate` keeps to together with the others of its pool, if they keep to `cap`.
    fn cap(&self, rate: f64, cap: f64) -> Option<Cap> {
        let Scope::Backends(entries) = self else {
            return None;
        };
        let told = Arc::clone(&entries.first()?.told);
        (rate > 0.0 && rate <= cap).then(|| Cap::new(cap, told))
    }

    /// Tunnels of each of its backends now; nothing where it is not about backends.
    pub fn loads(&self) -> Vec<u64> {
        let load = |entry: &Arc<BackendEntry>| u64::from(entry.load().load(Ordering::Relaxed));
        match self {
            Scope::Backends(entries) => entries.iter().map(load).collect(),
            Scope::Listener(_) | Scope::All(_) => Vec::new(),
        }
    }

    /// Tunnels that it has now.
    pub fn left(&self) -> u64 {
        let live = |entry: &Arc<ListenerEntry>| u64::from(entry.live().load(Ordering::Relaxed));
        match self {
            Scope::Backends(_) => self.loads().into_iter().sum(),
            Scope::Listener(entry) => live(entry),
            Scope::All(entries) => entries.iter().map(live).sum(),
        }
    }
}
