//! From whom an agent takes outer headers: networks, of which the most specific one is found (LPM trie).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use crate::error::{PacketError, refused};
use crate::layout::{MAX_TRUSTED, network_key, network_of};
use crate::sys;

/// An address and how many of its first bits are fixed.
pub type Network = (IpAddr, u8);

/// One that covers all: who is in it is everybody.
const EVERYBODY: [u8; 20] = [0; 20];

/// From now on from these alone; None: from everybody. Those that come are there before any goes, so who is
/// among them before and after is at every moment.
pub fn set(map: BorrowedFd<'_>, networks: Option<&[Network]>) -> Result<(), PacketError> {
    let wanted = match networks {
        None => BTreeSet::from([EVERYBODY]),
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
    let there = keys(map)?;
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

/// From whom it is now; None: from everybody.
pub fn get(map: BorrowedFd<'_>) -> Result<Option<Vec<Network>>, PacketError> {
    let there = keys(map)?;
    let everybody = there.iter().any(|key| *key == EVERYBODY);
    Ok((!everybody).then(|| there.iter().filter_map(|key| network_of(key)).collect()))
}

fn keys(map: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, PacketError> {
    sys::map_keys(map, EVERYBODY.len()).map_err(refused("read who is trusted"))
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
