//! Handshake storms: how many clients a second get to the backends, and who waits for that.
//!
//! What is limited is the handshake, not the connection: its head has been read, so a client that finds
//! no room can be told so, and when to come again. Tunnels that stand are not touched.

use std::sync::atomic::Ordering;

use pybalancer_core::record::Reason;
use pybalancer_core::time::Tick;

use super::Worker;
use crate::poller::{Interest, Side};
use crate::registry::ListenerEntry;
use crate::stats::field;
use crate::tunnel::{Opening, Phase};

/// Why a client finds no room.
pub(super) const FULL: &str = "too many handshakes at once";

impl Worker {
    /// A handshake has come: now, in a while, or not at all.
    pub(super) fn pace_handshake(&mut self, slot: u32) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(slot as usize) else {
            return;
        };
        let generation = tunnel.generation;
        let Some(opening) = &mut tunnel.opening else {
            return;
        };
        let front = std::sync::Arc::clone(&opening.front);
        let Some(web) = &front.listener.web else {
            return;
        };
        let Some(rate) = &web.handshakes else {
            return self.send_request(slot, false);
        };
        let Some(listening) = self.listening.get_mut(&front.socket) else {
            return self.send_request(slot, false);
        };
        // Whoever waits longer goes first.
        let until = match (listening.handshakes.is_empty(), self.admit_at) {
            (false, Some(at)) => at,
            _ => match front.entry.admit_handshake(rate, now) {
                Ok(()) => return self.send_request(slot, false),
                Err(until) => until,
            },
        };
        let most = web.handshake_queue;
        if most == 0 || !ListenerEntry::take(front.entry.handshakes_held(), most) {
            return self.turn_away(slot, FULL, Reason::HandshakeLimited);
        }
        opening.phase = Phase::Held;
        listening.handshakes.push_back((slot, generation));
        self.counters
            .listener(front.entry.index(), field!(ListenerSlot, queued), 1);
        self.wheel.set(slot, now + web.handshake_wait);
        self.admit_at = Some(self.admit_at.map_or(until, |at| at.min(until)));
        self.watch(slot, Side::Client, Interest::ENDS);
    }

    /// Let those go on whose turn it is.
    pub(super) fn admit_handshakes(&mut self) {
        let sockets: Vec<u32> = self.listening.keys().copied().collect();
        for socket in sockets {
            while let Some(listening) = self.listening.get_mut(&socket) {
                let Some((slot, generation)) = listening.handshakes.front().copied() else {
                    break;
                };
                let waits = self.tunnels.get(slot as usize).is_some_and(|tunnel| {
                    let held = |opening: &Opening| opening.phase == Phase::Held;
                    tunnel.generation == generation && tunnel.opening.as_deref().is_some_and(held)
                });
                if !waits {
                    listening.handshakes.pop_front();
                    continue;
                }
                let front = listening.front.as_ref();
                let rate = front.and_then(|front| front.listener.web.as_ref()?.handshakes.as_ref());
                if let (Some(front), Some(rate)) = (front, rate)
                    && let Err(until) = front.entry.admit_handshake(rate, self.now)
                {
                    self.admit_at = Some(self.admit_at.map_or(until, |at: Tick| at.min(until)));
                    break;
                }
                listening.handshakes.pop_front();
                self.leave_held(slot);
                self.send_request(slot, false);
            }
        }
    }

    /// It waited too long.
    pub(super) fn held_late(&mut self, slot: u32) {
        self.leave_held(slot);
        self.turn_away(slot, FULL, Reason::HandshakeLimited);
    }

    fn leave_held(&mut self, slot: u32) {
        if let Some(tunnel) = self.tunnels.get_mut(slot as usize)
            && let Some(opening) = &mut tunnel.opening
            && opening.phase == Phase::Held
        {
            opening.phase = Phase::Dialing;
            let held = tunnel.terms.listener.handshakes_held();
            held.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
