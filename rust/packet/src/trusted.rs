//! From whom an agent takes outer headers: networks, of which the most specific one is found (LPM trie).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use crate::error::{PacketError, refused};
use crate::layout::{MAX_TRUSTED, network_key};
use crate::sys;

/// An address and how many of its first bits are fixed.
pub type Network = (IpAddr, u8);

/// From now on from these alone; None: from everybody. Those that come are there before any goes, so who is
/// among them before and after is at every moment.
pub fn set(map: BorrowedFd<'_>, networks: Option<&[Network]>) -> Result<(), PacketError> {
    // One that covers all.
    let everybody = [0; 20];
    let wanted = match networks {
        None => BTreeSet::from([everybody]),
        Some(networks) => networks
            .iter()
            .copied()
            .map(key)
            .collect::<Result<_, _>>()?,
    };
    // Two sets, the old one and the new one, must fit.
    let most = MAX_TRUSTED as usize / 2;
    if wanted.len() > most {
        return Err(PacketError::new(format!(
            "outer headers are taken from {} networks; there may be {most}",
            wanted.len()
        )));
    }
    let there = sys::map_keys(map, everybody.len()).map_err(refused("read who is trusted"))?;
    for key in &wanted {
        if !there.iter().any(|found| found == key) {
            sys::map_update(map, key, &[1]).map_err(refused("note who is trusted"))?;
        }
    }
    for key in &there {
        if !wanted.iter().any(|one| one.as_slice() == key) {
            sys::map_delete(map, key).map_err(refused("forget who is trusted"))?;
        }
    }
    Ok(())
}

fn key((address, fixed): Network) -> Result<[u8; 20], PacketError> {
    let bits = if address.to_canonical().is_ipv4() {
        32
    } else {
        128
    };
    if fixed > bits {
        return Err(PacketError::new(format!("{address}/{fixed} is no network")));
    }
    Ok(network_key(address, fixed))
}
