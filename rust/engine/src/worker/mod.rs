//! A worker: one thread, one epoll instance, its own listeners and tunnels.
//!
//! Nothing on the hot path is shared: a message costs a wake-up, a `recv`, a `send` and a few stores.
//! What is shared (loads of backends, limits of listeners, ports) is touched when a tunnel begins
//! and when it ends, with plain atomics.
//!
//! The parts: [`accept`](self::accept) admits connections, [`opening`] finds them a backend,
//! [`relaying`] moves their bytes, [`ending`] closes the books, [`commands`] obeys the engine, [`draining`] tells tunnels to go. In mode
//! "websocket" [`requests`] reads what clients ask for, [`pacing`] holds back storms, [`responses`]
//! brings the answers, [`answers`] gives those that are ours, [`directing`] tells clients where to go instead, [`closing`] ends WebSockets politely. When
//! another process takes over, [`handing`] gives it what stands, and its own workers take it by [`adopting`].
//! Those that go on elsewhere when their backend goes away leave it in [`leaving`], and find the next in
//! [`reattaching`].

mod accept;
mod adopting;
mod answers;
mod closing;
mod commands;
mod directing;
mod draining;
mod ending;
mod failures;
mod handing;
mod judging;
mod leaving;
mod opening;
mod pacing;
mod reattaching;
mod relaying;
mod requests;
mod responses;
mod resuming;
mod upgrading;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pybalancer_core::record::Reason;
use pybalancer_core::time::Tick;
use pybalancer_core::timers::Wheel;
use pybalancer_core::ws::close::GOING_AWAY;
use slab::Slab;

use crate::clock::Clock;
use crate::deployment::{Deployment, Front};
use crate::mailbox::Inbox;
use crate::outbox::{Event, Outbox};
use crate::poller::{Poller, Token};
use crate::progress::Progress;
use crate::registry::BackendEntry;
use crate::relay::Tools;
use crate::stats::{Counters, Stats, field};
use crate::tunnel::Tunnel;
use draining::Draining;

/// What all workers of an engine share.
pub struct Shared {
    /// The time.
    pub clock: Clock,
    /// Counters.
    pub stats: Arc<Stats>,
    /// The way to the host.
    pub outbox: Arc<Outbox>,
    /// Who has done what.
    pub progress: Arc<Progress>,
    /// Outgoing ports that connects may use.
    pub ports: std::ops::RangeInclusive<u16>,
    /// Open files that one descriptor table may have.
    pub most_files: AtomicU64,
    /// Nothing is accepted yet: the process that is to be replaced still does.
    pub holding: AtomicBool,
}

/// A socket to accept from.
struct Listening {
    /// One; several where the process before had more workers; none once another process has taken over.
    sockets: Vec<OwnedFd>,
    shared: bool,
    /// Registered with the poller.
    watched: bool,
    /// What it is for; None until a deployment says so.
    front: Option<Arc<Front>>,
    /// Its listener has moved: closed then.
    retires_at: Option<Tick>,
    /// Connections that wait for `accept_rate`, oldest first, by slot and generation.
    waiting: VecDeque<(u32, u32)>,
    /// Handshakes that wait for `handshakes`.
    handshakes: VecDeque<(u32, u32)>,
}

impl Listening {
    fn watch(&mut self, poller: &Poller, number: u32) {
        let add = |socket| poller.add_level(socket, Token::Listener(number), self.shared);
        self.watched = self.sockets.iter().map(add).all(|added| added.is_ok());
    }

    /// False if that is not possible.
    fn unwatch(&self, poller: &Poller) -> bool {
        self.sockets
            .iter()
            .map(|socket| poller.remove(socket))
            .all(|removed| removed.is_ok())
    }
}

/// Failures of one kind at one backend, folded until they are told.
struct Folded {
    entry: Arc<BackendEntry>,
    connects: u64,
    ports: u64,
    message: String,
}

/// So many connections that open at once are a storm.
const STORM: usize = 128;
/// Tunnels that have room from the start. Memory that is not touched costs nothing, and a table that need
/// not grow leaves no holes behind.
const ROOM: usize = 1 << 16;
/// Descriptors kept back for commands that bring one.
const RESERVED: usize = 16;
/// How long failures are folded.
const FOLD: Duration = Duration::from_millis(100);
/// A panic within this time of the last one makes the worker wait before it starts again.
const CALM: Duration = Duration::from_secs(10);
/// How long WebSockets that were told of the end may take to answer.
const GOODBYE: Duration = Duration::from_secs(1);
/// The longest such wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// One worker's whole state.
pub struct Worker {
    index: usize,
    shared: Arc<Shared>,
    counters: Counters,
    inbox: Inbox,
    poller: Poller,
    /// What the engine wants to run; `installed` lags behind only when a panic came in between.
    deployment: Option<Arc<Deployment>>,
    installed: u64,
    listening: HashMap<u32, Listening>,
    tunnels: Slab<Tunnel>,
    generation: u32,
    wheel: Wheel,
    due: Vec<u32>,
    tools: Tools,
    /// Sockets of tunnels.
    sockets: usize,
    /// Tunnels that do not stand yet.
    opening: usize,
    /// The most of them since memory was last given back.
    busiest: usize,
    /// When a listener that has moved is closed.
    retire_at: Option<Tick>,
    /// Drains and sheds under way.
    drains: Vec<Draining>,
    /// When one of them has something to do.
    drain_at: Option<Tick>,
    /// When the head of some queue may be admitted.
    admit_at: Option<Tick>,
    /// Accepting pauses until then.
    resume_at: Option<Tick>,
    /// The host was told of a pause that is not over.
    pause_told: bool,
    folded: HashMap<u32, Folded>,
    source_failures: HashMap<Arc<str>, (u64, String)>,
    seekers: reattaching::Seekers,
    tell_at: Option<Tick>,
    random: u64,
    now: Tick,
    accepting: bool,
    finish_at: Option<Tick>,
    /// At `finish_at` WebSockets were told to end; it is when patience with them ends.
    goodbye_said: bool,
    /// Another process is taking over.
    handing: Option<handing::Handing>,
    /// We take over from another process.
    adopting: Option<adopting::Adopting>,
    /// Set by a command, so that the panic happens where any other would.
    sabotaged: bool,
}

impl Worker {
    /// A worker without listeners. Runs on the thread that will serve, after that thread has taken
    /// its private descriptor table.
    pub fn new(index: usize, shared: Arc<Shared>, inbox: Inbox) -> io::Result<Worker> {
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
        let now = shared.clock.now();
        let poller = Poller::new()?;
        poller.add_level(&inbox, Token::Control, false)?;
        let (tunnels, wheel) = (roomy_slab(&shared), roomy_wheel(&shared, now));
        Ok(Worker {
            index,
            counters: Counters::new(&shared.stats, index),
            shared,
            inbox,
            poller,
            deployment: None,
            installed: 0,
            listening: HashMap::new(),
            tunnels,
            generation: 0,
            wheel,
            due: Vec::new(),
            tools: Tools::default(),
            sockets: 0,
            opening: 0,
            busiest: 0,
            retire_at: None,
            drains: Vec::new(),
            drain_at: None,
            admit_at: None,
            resume_at: None,
            pause_told: false,
            folded: HashMap::new(),
            source_failures: HashMap::new(),
            seekers: reattaching::Seekers::default(),
            tell_at: None,
            // xorshift has no way out of 0.
            random: u64::from_ne_bytes(seed) | 1,
            now,
            accepting: true,
            finish_at: None,
            goodbye_said: false,
            handing: None,
            adopting: None,
            sabotaged: false,
        })
    }

    /// Serve until told to finish. A panic costs this worker's tunnels and nobody else anything.
    pub fn run(mut self) {
        let mut pause = Duration::ZERO;
        loop {
            let began = self.shared.clock.now();
            let message = match catch_unwind(AssertUnwindSafe(|| self.serve())) {
                Ok(Ok(aborted)) => {
                    let progress = Arc::clone(&self.shared.progress);
                    let index = self.index;
                    // Sockets first: who waits for the end may bind the same address again.
                    drop(self);
                    progress.ended(index, aborted);
                    return;
                }
                Ok(Err(error)) => error.to_string(),
                Err(panic) => panic_message(&*panic),
            };
            let calm = self.shared.clock.now().since(began) > CALM;
            pause = if calm { Duration::ZERO } else { pause };
            self.bury(message);
            std::thread::sleep(pause);
            pause = (pause * 2).clamp(Duration::from_millis(100), LONGEST_PAUSE);
            self.counters.worker(field!(WorkerSlot, restarts), 1);
            self.shared
                .outbox
                .tell(Event::WorkerRestarted { worker: self.index });
        }
    }

    /// After a panic: abort what there was and begin afresh. Listeners stay, so that connections
    /// that wait in their queues are served in a moment.
    fn bury(&mut self, message: String) {
        let lost = self.tunnels.len() as u64;
        self.now = self.shared.clock.now();
        for slot in self.slots() {
            // Whatever was half done when it panicked may panic again.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                self.end(slot, Reason::WorkerPanic, ending::How::Abort)
            }));
        }
        self.forget_drains();
        self.tunnels = roomy_slab(&self.shared);
        self.wheel = roomy_wheel(&self.shared, self.now);
        self.tools = Tools::default();
        self.due.clear();
        self.seekers = reattaching::Seekers::default();
        // What is frozen or held is as good as it was.
        let elsewhere = self.handing.as_ref().map_or(0, |handing| handing.sockets());
        (self.sockets, self.opening) = (elsewhere + self.sockets_held(), 0);
        (self.admit_at, self.resume_at, self.sabotaged) = (None, None, false);
        for listening in self.listening.values_mut() {
            listening.waiting.clear();
            listening.handshakes.clear();
        }
        self.shared.outbox.tell(Event::WorkerDied {
            worker: self.index,
            tunnels: lost,
            message,
        });
    }

    fn slots(&self) -> Vec<u32> {
        self.tunnels.iter().map(|(slot, _)| slot as u32).collect()
    }

    /// The turns. Returns how many tunnels had to be aborted at the end.
    fn serve(&mut self) -> io::Result<u64> {
        self.now = self.shared.clock.now();
        self.install();
        self.resume_accepting();
        loop {
            let timeout = self.timeout();
            let ready = self.poller.wait(timeout)?.len();
            self.now = self.shared.clock.now();
            self.counters.worker(field!(WorkerSlot, wakeups), 1);
            self.counters
                .worker(field!(WorkerSlot, events), ready as u64);
            let mut commanded = false;
            for index in 0..ready {
                let Some(event) = self.poller.event(index) else {
                    break;
                };
                match Token::of(&event) {
                    Token::Tunnel {
                        slot,
                        generation,
                        side,
                    } => self.on_tunnel(slot, generation, side, event.flags),
                    Token::Listener(socket) => self.on_listener(socket),
                    Token::Channel(number) => self.on_channel(number),
                    Token::Control => commanded = true,
                }
            }
            if commanded {
                // Last: it may give a tunnel another backend, whose socket the events of this turn
                // know nothing of.
                self.on_command()?;
            }
            self.fire_timers();
            self.hand_over_late();
            self.let_seekers_ask();
            self.publish();
            if let Some(deadline) = self.finish_at
                && ((self.tunnels.is_empty() && !self.passes_on()) || self.now >= deadline)
            {
                if self.say_goodbye() {
                    continue;
                }
                let left = self.slots();
                for slot in &left {
                    self.end(*slot, Reason::Shutdown, ending::How::Abort);
                }
                self.publish();
                return Ok(left.len() as u64);
            }
        }
    }

    /// Tell every WebSocket that this is the end, once; whether there is somebody to wait for.
    fn say_goodbye(&mut self) -> bool {
        if std::mem::replace(&mut self.goodbye_said, true) {
            return false;
        }
        let framed = |slot: &u32| self.tunnels.get(*slot as usize).is_some_and(|t| t.framed);
        let slots: Vec<u32> = self.slots().into_iter().filter(framed).collect();
        for slot in &slots {
            self.close_websocket(*slot, GOING_AWAY, Reason::Shutdown);
        }
        self.finish_at = Some(self.now + GOODBYE);
        !slots.is_empty()
    }

    /// How long nothing needs to be done unless an event comes.
    fn timeout(&self) -> Option<Duration> {
        if self.seekers_may_ask() {
            return Some(Duration::ZERO);
        }
        let times = [
            self.wheel.next(),
            self.retire_at,
            self.drain_at,
            self.admit_at,
            self.resume_at,
            self.tell_at,
            self.finish_at,
        ];
        times
            .into_iter()
            .flatten()
            .min()
            .map(|next| next.since(self.now))
    }

    fn fire_timers(&mut self) {
        let reached = |at: Option<Tick>, now: Tick| at.is_some_and(|at| at <= now);
        if reached(self.wheel.next(), self.now) {
            let mut due = std::mem::take(&mut self.due);
            self.wheel.expire(self.now, &mut due);
            for slot in due.drain(..) {
                self.on_timer(slot);
            }
            self.due = due;
        }
        if reached(self.retire_at, self.now) {
            self.retire_listeners();
        }
        if reached(self.drain_at, self.now) {
            self.advance_drains();
        }
        if reached(self.admit_at, self.now) {
            self.admit_waiting();
        }
        if reached(self.resume_at, self.now) {
            self.resume_accepting();
        }
        if reached(self.tell_at, self.now) {
            self.tell_failures();
        }
    }

    fn on_timer(&mut self, slot: u32) {
        match self.tunnels.get(slot as usize) {
            Some(tunnel) if tunnel.opening.is_some() => self.opening_late(slot),
            Some(_) => self.quiet(slot),
            None => {}
        }
    }

    /// After a storm of openings, return the memory that they took.
    fn recover(&mut self) {
        self.busiest = self.busiest.max(self.opening);
        if self.busiest >= STORM && self.opening < self.busiest / 8 {
            self.busiest = self.opening;
            crate::sys::give_memory_back();
        }
    }

    /// Show the figures of this turn.
    fn publish(&mut self) {
        self.recover();
        let copied = std::mem::take(&mut self.tools.copied);
        let spliced = std::mem::take(&mut self.tools.spliced);
        self.counters
            .worker(field!(WorkerSlot, bytes_copied), copied);
        self.counters
            .worker(field!(WorkerSlot, bytes_spliced), spliced);
        let most = self.shared.most_files.load(Ordering::Relaxed);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        self.tools
            .pipes
            .leave_room(most.saturating_sub(self.descriptors()) > 2 * RESERVED);
        self.counters
            .gauge(field!(WorkerSlot, descriptors), self.descriptors() as u64);
        self.counters
            .gauge(field!(WorkerSlot, pipes), self.tools.pipes.made() as u64);
        self.counters
            .gauge(field!(WorkerSlot, waiting), self.opening as u64);
    }

    /// Descriptors in use: sockets, pipes, listeners, and the few of the worker itself.
    fn descriptors(&self) -> usize {
        self.sockets + 2 * self.tools.pipes.made() + self.listening.len() + 6
    }

    /// Whether a tunnel's two sockets would still fit. Some are kept back for pipes and commands.
    fn has_room(&self) -> bool {
        let most =
            usize::try_from(self.shared.most_files.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        // Every connection will want a second socket.
        let sockets = 2 * (self.tunnels.len() + 1);
        self.descriptors() - self.sockets + sockets + RESERVED <= most
    }

    fn entropy(&mut self) -> u64 {
        // xorshift64* (Vigna, 2016): spreads picks; nothing secret hangs on it.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

fn roomy_slab(shared: &Shared) -> Slab<Tunnel> {
    Slab::with_capacity(room(shared))
}

fn roomy_wheel(shared: &Shared, now: Tick) -> Wheel {
    let mut wheel = Wheel::new(now);
    wheel.reserve(room(shared));
    wheel
}

fn room(shared: &Shared) -> usize {
    let files = shared.most_files.load(Ordering::Relaxed);
    usize::try_from(files / 2).map_or(ROOM, |most| most.min(ROOM))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("panic without a message").to_owned()
}
