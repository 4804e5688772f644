//! What the engine tells a worker.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pybalancer_core::endpoint::Endpoint;

use super::{Listening, Worker};
use crate::engine::RETIREMENT;
use crate::exchange::Exchange;
use crate::mailbox::Command;
use crate::outbox::Event;
use crate::registry::Fate;
use crate::socket;
use crate::stats::field;
use crate::tunnel::Phase;
use crate::worker::ending::How;
use pybalancer_core::record::Reason;
use pybalancer_core::time::Tick;
use pybalancer_core::ws::close::GOING_AWAY;

impl Worker {
    pub(super) fn on_command(&mut self) -> io::Result<()> {
        while let Some((command, descriptor)) = self.inbox.receive()? {
            match command {
                Command::Listen { socket, shared } => {
                    if descriptor.is_none() {
                        // The kernel drops what does not fit into the table.
                        self.shared.outbox.tell(Event::AcceptPaused {
                            worker: self.index,
                            message:
                                "its open files are used up, and a new listener found no room \
                                      (see ulimit -n)"
                                    .to_owned(),
                        });
                    }
                    if let Some(descriptor) = descriptor {
                        let fresh = || Listening {
                            sockets: Vec::new(),
                            shared,
                            watched: false,
                            front: None,
                            retires_at: None,
                            waiting: Default::default(),
                            handshakes: Default::default(),
                        };
                        let listening = self.listening.entry(socket).or_insert_with(fresh);
                        listening.sockets.push(descriptor);
                    }
                }
                Command::Apply(deployment) => {
                    self.deployment = Some(deployment);
                    // One that takes over from another process waits until that has let go.
                    self.accepting = !self.shared.holding.load(Ordering::Relaxed);
                    self.install();
                }
                Command::Drain(order) => self.begin_drain(order),
                Command::StopAccepting => self.stop_accepting(),
                Command::HandOver(order) => self.on_order(order, descriptor),
                Command::Finish(deadline) => {
                    if self.handing.is_some() && self.finish_at.is_none() {
                        self.thaw();
                    }
                    self.stop_accepting();
                    self.finish_at = Some(
                        self.finish_at
                            .map_or(deadline, |before| before.min(deadline)),
                    );
                }
                Command::Panic => self.sabotaged = true,
            }
        }
        #[allow(clippy::panic, reason = "this is what it was told to do")]
        if self.sabotaged {
            panic!("told to panic, to show that it is contained");
        }
        Ok(())
    }

    /// Make the wanted deployment the running one.
    pub(super) fn install(&mut self) {
        let Some(deployment) = self
            .deployment
            .clone()
            .filter(|wanted| wanted.generation > self.installed)
        else {
            return;
        };
        for front in &deployment.fronts {
            let Some(listening) = self.listening.get_mut(&front.socket) else {
                continue;
            };
            for socket in &listening.sockets {
                if matches!(front.listener.bind, Endpoint::Tcp(_)) {
                    // For the connections accepted from now on. Cannot fail on a listening socket.
                    let _ = socket::tune(socket, &front.pool.planned.dialing.timeouts);
                }
                let _ = rustix::net::listen(socket, front.listener.backlog);
            }
            listening.front = Some(Arc::clone(front));
            listening.retires_at = None;
            if self.accepting && !listening.watched && self.resume_at.is_none() {
                listening.watch(&self.poller, front.socket);
            }
        }
        let wanted = |socket: &u32| {
            deployment
                .fronts
                .iter()
                .any(|front| front.socket == *socket)
        };
        let gone: Vec<u32> = self
            .listening
            .keys()
            .copied()
            .filter(|socket| !wanted(socket))
            .collect();
        for socket in gone {
            let listening = self.listening.get_mut(&socket);
            let moved = listening.and_then(|listening| {
                let new = deployment.moved(listening.front.as_ref()?)?;
                listening.front = Some(Arc::clone(new));
                Some(*listening.retires_at.get_or_insert(self.now + RETIREMENT))
            });
            match moved {
                Some(at) => {
                    self.retire_at = Some(self.retire_at.map_or(at, |before| before.min(at)))
                }
                None => self.stop_listening(socket),
            }
        }
        // Whoever waits may have to wait no longer.
        self.admit_waiting();
        if deployment.orphans {
            self.close_orphans();
        }
        self.installed = deployment.generation;
        self.counters
            .gauge(field!(WorkerSlot, generation), deployment.generation);
        self.shared
            .progress
            .applied(self.index, deployment.generation);
    }

    /// Close the listeners that have moved long enough ago.
    pub(super) fn retire_listeners(&mut self) {
        self.retire_at = None;
        let retiring = self.listening.iter();
        let retiring: Vec<(u32, Tick)> = retiring
            .filter_map(|(socket, listening)| Some((*socket, listening.retires_at?)))
            .collect();
        for (socket, at) in retiring {
            if at <= self.now {
                self.stop_listening(socket);
            } else {
                self.retire_at = Some(self.retire_at.map_or(at, |before| before.min(at)));
            }
        }
    }

    fn stop_accepting(&mut self) {
        self.accepting = false;
        self.resume_at = None;
        let sockets: Vec<u32> = self.listening.keys().copied().collect();
        for socket in sockets {
            self.stop_listening(socket);
        }
        self.end_idle_requests();
    }

    /// Serve what waits in the kernel's queue, then close: whoever was let in is not thrown out.
    pub(super) fn stop_listening(&mut self, socket: u32) {
        if !self.shared.holding.load(Ordering::Relaxed) {
            // Else they are the other process's, which still has the socket.
            self.drain_accept_queue(socket);
        }
        let Some(listening) = self.listening.remove(&socket) else {
            return;
        };
        if listening.watched {
            let _ = listening.unwatch(&self.poller);
        }
        for (slot, generation) in listening.waiting.into_iter().chain(listening.handshakes) {
            let waits =
                self.is_current(slot, generation) && self.phase(slot).is_some_and(Phase::waits);
            if waits {
                self.give_up(slot, Reason::Shutdown);
            }
        }
    }

    /// Connections between two requests hold nothing that anybody waits for.
    pub(super) fn end_idle_requests(&mut self) {
        for slot in self.slots() {
            self.end_idle_request(slot);
        }
    }

    pub(super) fn end_idle_request(&mut self, slot: u32) {
        let Some(tunnel) = self.tunnels.get(slot as usize) else {
            return;
        };
        let idle = |exchange: &Exchange| exchange.served > 0 && exchange.ahead.is_empty();
        if let Some(opening) = &tunnel.opening
            && opening.phase == Phase::Request
            && opening.exchange.as_deref().is_some_and(idle)
        {
            self.end(slot, Reason::Finished, How::Clean);
        }
    }

    pub(super) fn close_orphans(&mut self) {
        for slot in self.slots() {
            let Some(tunnel) = self.tunnels.get(slot as usize) else {
                continue;
            };
            let framed = tunnel.framed;
            let reason = match tunnel.entry.as_ref().map(|entry| entry.fate()) {
                Some(Fate::Removed) => Reason::BackendRemoved,
                Some(Fate::Down) => Reason::BackendDown,
                Some(Fate::Keep) | None => continue,
            };
            match self.phase(slot) {
                Some(_) if self.is_away(slot) => self.redirect(slot),
                Some(Phase::Exchange) => self.give_up(slot, reason),
                Some(Phase::Dialing) => self.dial_elsewhere(slot),
                Some(_) => self.drop_backend(slot),
                None if self.leave_backend(slot) => {}
                None if framed => self.close_websocket(slot, GOING_AWAY, reason),
                None => self.end(slot, reason, How::Abort),
            }
        }
    }
}
