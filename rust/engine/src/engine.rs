//! The handle on the workers.

mod draining;
mod explaining;
mod handing;

pub use draining::{Progress as DrainProgress, Target};
pub use explaining::Told;
pub use handing::Lent;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use pybalancer_core::endpoint::Endpoint;
use pybalancer_core::plan::{Listener, Plan};
use pybalancer_core::time::Tick;

use crate::clock::Clock;
use crate::deployment::{Deployment, Leaving, overlap};
use crate::drains::Order;
use crate::handover::Guests;
use crate::mailbox::{Command, Mailbox, mailbox};
use crate::outbox::Outbox;
use crate::ports::Ledger;
use crate::progress::Progress;
use crate::registry::Registry;
use crate::socket::{self, Listening, SocketFile};
use crate::stats::Stats;
use crate::sys;
use crate::worker::{Shared, Worker};

/// How long a socket goes on accepting whose listener has moved to an address that its clients fit as
/// well. Those whose SYN it has answered belong to it; closing it would reset them.
pub const RETIREMENT: Duration = Duration::from_secs(4);
/// How long workers may take to run a plan. They answer within a turn; longer means that one hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a plan could not be applied. Nothing has changed then, except for [`ApplyError::Stuck`].
#[derive(Debug)]
pub enum ApplyError {
    /// An address cannot be listened on.
    Bind {
        /// Which.
        address: Endpoint,
        /// What the system said.
        error: io::Error,
    },
    /// More listeners and backends than the statistics have room for.
    TooMany,
    /// The engine is closed.
    Closed,
    /// A worker does not answer.
    Stuck,
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApplyError::Bind { address, error } => write!(f, "cannot listen on {address}: {error}"),
            ApplyError::TooMany => {
                write!(
                    f,
                    "more than {} listeners and backends together",
                    crate::stats::ENTRIES
                )
            }
            ApplyError::Closed => f.write_str("the engine is closed"),
            ApplyError::Stuck => {
                write!(f, "a worker has not answered for {} s", PATIENCE.as_secs())
            }
        }
    }
}

/// What is told apart when a reload compares sockets: the address; and, where the kernel chooses the
/// port, for whom.
type SocketKey = (Endpoint, Option<Arc<str>>);

/// An engine on its way to its end.
pub struct Closing {
    give_up_at: Tick,
}

struct Bound {
    number: u32,
    address: Endpoint,
    /// Its listener has moved to another address; until then workers still accept from it.
    retired: Option<Tick>,
    /// Removed when this is dropped.
    file: Option<SocketFile>,
}

struct State {
    registry: Registry,
    ledger: Arc<Ledger>,
    /// Listening sockets that another process has lent, until a plan wants them.
    inherited: HashMap<SocketKey, (u32, Listening)>,
    /// Tunnels that another process hands over.
    guests: Option<Arc<Guests>>,
    /// Backends whose tunnels are drained once they have come.
    leaving: Vec<Leaving>,
    sockets: HashMap<SocketKey, Bound>,
    next_socket: u32,
    generation: u64,
    deployment: Option<Arc<Deployment>>,
    /// Drains and sheds: those under way, and for a while those that are over.
    drains: Vec<Arc<Order>>,
    drained: u64,
    closed: bool,
}

/// Workers, and what they share. All methods may be called from any thread.
pub struct Engine {
    mailboxes: Vec<Mailbox>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    state: Mutex<State>,
    shared: Arc<Shared>,
    wake: OwnedFd,
    stats_file: OwnedFd,
    /// A fork copies memory but not threads: in the child this handle is dead.
    process: u32,
}

impl Engine {
    /// Start workers (0: one per core that this process may use). Statistics go to a memfd or a file.
    pub fn start(workers: usize, stats_path: Option<&Path>) -> io::Result<Engine> {
        let workers = match workers {
            0 => std::thread::available_parallelism()?.get(),
            some => some,
        };
        let (stats, stats_file) = Stats::new(workers, stats_path)?;
        let (outbox, wake) = Outbox::new()?;
        let ledger = Arc::new(Ledger::new());
        let shared = Arc::new(Shared {
            clock: Clock::new(),
            stats: Arc::clone(&stats),
            outbox,
            progress: Arc::new(Progress::new(workers)),
            ports: ledger.range(),
            most_files: AtomicU64::new(0),
            holding: AtomicBool::new(false),
        });
        let state = State {
            registry: Registry::new(stats),
            ledger,
            inherited: HashMap::new(),
            guests: None,
            leaving: Vec::new(),
            sockets: HashMap::new(),
            next_socket: 0,
            generation: 0,
            deployment: None,
            drains: Vec::new(),
            drained: 0,
            closed: false,
        };
        // The workers already started are told to finish when this is dropped on an error.
        let mut engine = Engine {
            mailboxes: Vec::with_capacity(workers),
            threads: Mutex::default(),
            state: Mutex::new(state),
            shared,
            wake,
            stats_file,
            process: std::process::id(),
        };
        engine.note_file_limit();
        for index in 0..workers {
            let started = start_worker(index, &engine.shared, &engine.wake);
            let (mailbox, thread) = started.inspect_err(|_| {
                // Nobody is to wait for the end of those that never began.
                for missing in index..workers {
                    engine.shared.progress.ended(missing, 0);
                }
            })?;
            engine.mailboxes.push(mailbox);
            engine
                .threads
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner)
                .push(thread);
        }
        Ok(engine)
    }

    /// Whether this is the process that started it.
    pub fn is_ours(&self) -> bool {
        std::process::id() == self.process
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.mailboxes.len()
    }

    /// The newest generation that every worker runs.
    pub fn generation(&self) -> u64 {
        self.shared.progress.generation()
    }

    /// The file of the statistics.
    pub fn stats_file(&self) -> BorrowedFd<'_> {
        self.stats_file.as_fd()
    }

    /// Readable while events or records wait.
    pub fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Events and records.
    pub fn outbox(&self) -> &Outbox {
        &self.shared.outbox
    }

    /// Bind what is new, hand the plan to every worker, wait until all run it; its generation.
    pub fn apply(&self, plan: &Plan) -> Result<u64, ApplyError> {
        let mut state = self.state();
        if state.closed {
            return Err(ApplyError::Closed);
        }
        self.note_file_limit();
        let now = self.shared.clock.now();
        // A little before the workers close it, so that nothing is revived that is gone already.
        let margin = RETIREMENT / 4;
        state
            .sockets
            .retain(|_, bound| bound.retired.is_none_or(|until| now + margin < until));
        let mut fresh: Vec<(SocketKey, u32, Listening)> = Vec::new();
        let mut places = Vec::with_capacity(plan.listeners.len());
        for listener in &plan.listeners {
            let key = socket_key(listener);
            if let Some(bound) = state.sockets.get(&key) {
                if let Some(file) = &bound.file {
                    let changed = file.set_mode(listener.unix_mode);
                    changed.map_err(|error| ApplyError::Bind {
                        address: listener.bind.clone(),
                        error,
                    })?;
                }
                places.push((bound.number, bound.address.to_string()));
                continue;
            }
            let listening = match state.inherited.remove(&key) {
                Some((_, inherited)) => inherited,
                None => {
                    let bound = state.sockets.values().map(|bound| &bound.address);
                    let lent = state.inherited.values().map(|(_, lent)| &lent.address);
                    let alone = !bound
                        .chain(lent)
                        .any(|address| overlap(address, &listener.bind));
                    let (at, workers) = (&listener.bind, self.workers());
                    socket::listen(at, workers, listener.backlog, listener.unix_mode, alone)
                        .map_err(|error| ApplyError::Bind {
                            address: listener.bind.clone(),
                            error,
                        })?
                }
            };
            let number = state.next_socket + fresh.len() as u32;
            places.push((number, listening.address.to_string()));
            fresh.push((key, number, listening));
        }
        let generation = state.generation + 1;
        let State {
            registry,
            ledger,
            deployment,
            ..
        } = &mut *state;
        let next = Deployment::new(
            plan,
            generation,
            registry,
            ledger,
            deployment.as_deref(),
            &places,
        );
        let next = Arc::new(next.ok_or(ApplyError::TooMany)?);
        // From here on nothing can fail but a worker that hangs.
        state.next_socket += fresh.len() as u32;
        state.generation = generation;
        let mut sent = true;
        for (key, number, listening) in fresh {
            let shared = listening.sockets.len() < self.workers();
            for (index, mailbox) in self.mailboxes.iter().enumerate() {
                for socket in listening.of_worker(index, self.workers()) {
                    let command = Command::Listen {
                        socket: number,
                        shared,
                    };
                    sent &= mailbox.send(command, Some(socket.as_fd())).is_ok();
                }
            }
            state.sockets.insert(
                key,
                Bound {
                    number,
                    address: listening.address,
                    retired: None,
                    file: listening.file,
                },
            );
        }
        for mailbox in &self.mailboxes {
            sent &= mailbox
                .send(Command::Apply(Arc::clone(&next)), None)
                .is_ok();
        }
        self.end_drains(&state, &next);
        self.drain_leaving(&mut state, &next.leaving);
        let before = state.deployment.replace(Arc::clone(&next));
        state.sockets.retain(|_, bound| {
            if next.fronts.iter().any(|front| front.socket == bound.number) {
                bound.retired = None;
                return true;
            }
            let before = before.iter().flat_map(|deployment| &deployment.fronts);
            let moved = before
                .into_iter()
                .any(|front| front.socket == bound.number && next.moved(front).is_some());
            if moved {
                bound.retired = Some(now + RETIREMENT);
            }
            // Retired before, and not over yet.
            bound.retired.is_some()
        });
        if sent && self.shared.progress.wait_applied(generation, PATIENCE) {
            self.shared
                .stats
                .generation()
                .store(generation, Ordering::Relaxed);
            Ok(generation)
        } else {
            Err(ApplyError::Stuck)
        }
    }

    /// Listener names and the addresses that are really bound.
    pub fn bound(&self) -> Vec<(Arc<str>, Endpoint)> {
        let state = self.state();
        let Some(deployment) = &state.deployment else {
            return Vec::new();
        };
        let address_of = |number: u32| state.sockets.values().find(|bound| bound.number == number);
        deployment
            .fronts
            .iter()
            .filter_map(|front| {
                Some((
                    Arc::clone(&front.entry.name),
                    address_of(front.socket)?.address.clone(),
                ))
            })
            .collect()
    }

    /// The deployment that was applied last.
    pub fn deployment(&self) -> Option<Arc<Deployment>> {
        self.state().deployment.clone()
    }

    /// Close the listeners; tunnels go on.
    pub fn stop_accepting(&self) {
        self.state().sockets.clear();
        for mailbox in &self.mailboxes {
            // One that has ended accepts no more either.
            let _ = mailbox.send(Command::StopAccepting, None);
        }
    }

    /// Connections that live now, over all workers.
    pub fn active(&self) -> u64 {
        self.state().registry.connections()
    }

    /// Accept no more, wait up to `grace` for tunnels to end, abort the rest and end the workers; how
    /// many were aborted. May be called again, from another thread and with less grace.
    pub fn close(&self, grace: Duration) -> u64 {
        let wait = self.begin_close(grace);
        loop {
            if let Some(aborted) = self.wait_closed(&wait, PATIENCE) {
                return aborted;
            }
        }
    }

    /// The beginning of [`close`](Engine::close): what to give to [`wait_closed`](Engine::wait_closed).
    pub fn begin_close(&self, grace: Duration) -> Closing {
        {
            let mut state = self.state();
            state.closed = true;
            state.sockets.clear();
        }
        let deadline = self.shared.clock.now() + grace;
        for mailbox in &self.mailboxes {
            let _ = mailbox.send(Command::Finish(deadline), None);
        }
        Closing {
            give_up_at: deadline + PATIENCE,
        }
    }

    /// Wait up to `slice` for the workers to end; how many tunnels they aborted, once they have.
    pub fn wait_closed(&self, closing: &Closing, slice: Duration) -> Option<u64> {
        let Some(aborted) = self.shared.progress.wait_ended(slice) else {
            // A worker that hangs: its thread is given up rather than the caller.
            let late = self.shared.clock.now() >= closing.give_up_at;
            return late.then(|| self.active());
        };
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // Its panics were caught; it has reported its end.
            let _ = thread.join();
        }
        Some(aborted)
    }

    /// Make a worker panic, to show that it is contained.
    pub fn sabotage(&self, worker: usize) -> bool {
        self.mailboxes
            .get(worker)
            .is_some_and(|mailbox| mailbox.send(Command::Panic, None).is_ok())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The limit may have been raised since.
    fn note_file_limit(&self) {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        self.shared
            .most_files
            .store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.is_ours() {
            self.close(Duration::ZERO);
        }
    }
}

fn start_worker(
    index: usize,
    shared: &Arc<Shared>,
    wake: &OwnedFd,
) -> io::Result<(Mailbox, JoinHandle<()>)> {
    let (mailbox, inbox) = mailbox()?;
    let keep = [inbox.as_fd().as_raw_fd(), wake.as_raw_fd()];
    let shared = Arc::clone(shared);
    let (report, started) = mpsc::channel();
    let _quiet = sys::SignalsBlocked::begin();
    let thread = std::thread::Builder::new()
        .name(format!("pybalancer-{index}"))
        .spawn(move || {
            if let Err(error) = sys::take_private_table(&keep) {
                // Still the host's table: there it is closed below.
                std::mem::forget(inbox);
                let _ = report.send(Err(error));
                return;
            }
            match Worker::new(index, shared, inbox) {
                Ok(worker) => {
                    let _ = report.send(Ok(()));
                    worker.run();
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            }
        })?;
    // The inbox's number in this table may be closed once the worker has its own copy of it: that
    // it has is what the report says.
    let started = started
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("a worker died at its start")));
    sys::close_number(keep[0]);
    started.map(|()| (mailbox, thread))
}

fn socket_key(listener: &Listener) -> SocketKey {
    let chosen = matches!(listener.bind, Endpoint::Tcp(address) if address.port() == 0);
    (
        listener.bind.clone(),
        chosen.then(|| Arc::clone(&listener.name)),
    )
}
