//! Services and their tables: two tables each, of which one is live.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use pybalancer_core::rows::{Rows, WIDTH};

use crate::error::{PacketError, refused};
use crate::kernel::Kernel;
use crate::layout::{self, LAYOUT, MAX_SERVICES, Protocol, ROW};
use crate::loader;
use crate::sys::{self, Shared};

/// Address, port, protocol.
pub type Key = (IpAddr, u16, Protocol);

struct Service {
    key: Key,
    mtu: u32,
    /// None for what a process before has left: its tables can be replaced, but not opened.
    tables: Option<[Table; 2]>,
    flip: u64,
}

struct Table {
    map: OwnedFd,
    rows: Shared,
}

impl Table {
    fn new(size: u32) -> Result<Table, PacketError> {
        let map = loader::new_table(size)?;
        let rows = Shared::map(&map, size as usize * ROW).map_err(refused("map a table"))?;
        Ok(Table { map, rows })
    }

    fn fill(&self, rows: &Rows) {
        for (index, row) in rows.rows().iter().enumerate() {
            if let Some(word) = self.rows.long(index) {
                word.store(layout::row(*row), Ordering::Relaxed);
            }
        }
    }
}

/// All services of a path.
pub struct Services {
    size: u32,
    services: BTreeMap<u32, Service>,
}

impl Services {
    /// Those that are in the maps.
    pub fn find(kernel: &Kernel, size: u32) -> Result<Services, PacketError> {
        let mut found = BTreeMap::new();
        let map = kernel.maps.services.as_fd();
        for key in sys::map_keys(map, LAYOUT[2] as usize).map_err(refused("read the services"))? {
            let mut value = [0; 8];
            let there =
                sys::map_lookup(map, &key, &mut value).map_err(refused("read a service"))?;
            if let (true, Some(key)) = (there, layout::service_of(&key)) {
                let [a, b, c, d, e, f, g, h] = value;
                let number = u32::from_ne_bytes([a, b, c, d]);
                let mtu = u32::from_ne_bytes([e, f, g, h]);
                found.insert(
                    number,
                    Service {
                        key,
                        mtu,
                        tables: None,
                        flip: 0,
                    },
                );
            }
        }
        Ok(Services {
            size,
            services: found,
        })
    }

    /// A service and its rows: from one packet to the next, the whole table.
    pub fn set(
        &mut self,
        kernel: &mut Kernel,
        number: u32,
        (address, port, protocol): Key,
        rows: &Rows,
        mtu: u32,
    ) -> Result<(), PacketError> {
        let key = (address.to_canonical(), port, protocol);
        self.check(number, key, rows)?;
        let old = self
            .services
            .get(&number)
            .map(|service| (service.key, service.mtu));
        if self
            .services
            .get(&number)
            .is_none_or(|service| service.tables.is_none())
        {
            let tables = begin(kernel, number, self.size, rows)?;
            let service = self.services.entry(number).or_insert(Service {
                key,
                mtu,
                tables: None,
                flip: 0,
            });
            service.tables = Some(tables);
        } else if let Some(service) = self.services.get_mut(&number) {
            swap(kernel, number, service, rows)?;
        }
        if old != Some((key, mtu)) {
            let value = layout::service(number, mtu);
            for name in [Some((port, protocol)), None] {
                sys::map_update(
                    kernel.maps.services.as_fd(),
                    &layout::service_key(address, name),
                    &value,
                )
                .map_err(refused("note a service"))?;
            }
            let name = layout::service_key(address, Some((port, protocol)));
            kernel.set_near(&name, Some((number, mtu)))?;
            if let Some(service) = self.services.get_mut(&number) {
                (service.key, service.mtu) = (key, mtu);
            }
        }
        match old {
            Some((old, _)) if old != key => self.forget(kernel, old),
            _ => Ok(()),
        }
    }

    fn check(&self, number: u32, key: Key, rows: &Rows) -> Result<(), PacketError> {
        check_number(number)?;
        if rows.rows().len() != self.size as usize {
            return Err(PacketError::new(format!(
                "these rows are {}, the table has {} slots",
                rows.rows().len(),
                self.size
            )));
        }
        if key.1 == 0 {
            return Err(PacketError::new("a service has a port from 1 to 65535"));
        }
        let taken = self
            .services
            .iter()
            .find(|(other, service)| service.key == key && **other != number);
        match taken {
            Some((other, _)) => Err(PacketError::new(format!(
                "{} port {} is service {other} already",
                key.0, key.1
            ))),
            None => Ok(()),
        }
    }

    /// Take a service away.
    pub fn drop(&mut self, kernel: &mut Kernel, number: u32) -> Result<(), PacketError> {
        let Some(service) = self.services.remove(&number) else {
            return Ok(());
        };
        self.forget(kernel, service.key)?;
        for half in 0..2 {
            sys::map_delete(
                kernel.maps.tables.as_fd(),
                &(number * 2 + half).to_ne_bytes(),
            )
            .map_err(refused("forget a table"))?;
        }
        let none = vec![0; LAYOUT[5] as usize * kernel.cpus];
        sys::map_update(
            kernel.maps.of_services.as_fd(),
            &number.to_ne_bytes(),
            &none,
        )
        .map_err(refused("clear the counts of a service"))
    }

    /// Take a key out of the map, and its address if no service is there any more.
    fn forget(&self, kernel: &Kernel, (address, port, protocol): Key) -> Result<(), PacketError> {
        let others = self
            .services
            .values()
            .any(|service| service.key.0 == address);
        let name = layout::service_key(address, Some((port, protocol)));
        kernel.set_near(&name, None)?;
        let keys = [Some(Some((port, protocol))), (!others).then_some(None)];
        for name in keys.into_iter().flatten() {
            sys::map_delete(
                kernel.maps.services.as_fd(),
                &layout::service_key(address, name),
            )
            .map_err(refused("forget a service"))?;
        }
        Ok(())
    }

    /// Keys by number.
    pub fn keys(&self) -> BTreeMap<u32, Key> {
        self.services
            .iter()
            .map(|(number, service)| (*number, service.key))
            .collect()
    }

    /// The row of a slot, as packets see it.
    pub fn row(
        &self,
        kernel: &Kernel,
        number: u32,
        slot: u32,
    ) -> Result<[u16; WIDTH], PacketError> {
        let live = kernel.live(number)?.load(Ordering::Acquire) & 1;
        let row = self
            .services
            .get(&number)
            .and_then(|service| service.tables.as_ref())
            .and_then(|tables| tables.get(live as usize)?.rows.long(slot as usize))
            .ok_or_else(|| PacketError::new(format!("service {number} has no table yet")))?
            .load(Ordering::Relaxed);
        Ok(layout::ids(row))
    }
}

/// New tables, in place of those of a process before if there are any.
fn begin(
    kernel: &mut Kernel,
    number: u32,
    size: u32,
    rows: &Rows,
) -> Result<[Table; 2], PacketError> {
    let tables = [Table::new(size)?, Table::new(size)?];
    let live = kernel.live(number)?.load(Ordering::Relaxed) & 1;
    let other = live ^ 1;
    let install = |half: u32| {
        let Some(table) = tables.get(half as usize) else {
            return Ok(());
        };
        let place = (number * 2 + half).to_ne_bytes();
        let map = table.map.as_raw_fd().to_ne_bytes();
        sys::map_update(kernel.maps.tables.as_fd(), &place, &map).map_err(refused("note a table"))
    };
    // Filled before packets can find it.
    if let Some(table) = tables.get(other as usize) {
        table.fill(rows);
    }
    install(other)?;
    kernel.live(number)?.store(other, Ordering::Release);
    // The kernel returns from this when no packet sees the table that was there.
    install(live)?;
    Ok(tables)
}

fn swap(
    kernel: &mut Kernel,
    number: u32,
    service: &mut Service,
    rows: &Rows,
) -> Result<(), PacketError> {
    kernel
        .grace
        .wait(service.flip)
        .map_err(refused("wait for packets under way"))?;
    let other = kernel.live(number)?.load(Ordering::Relaxed) & 1 ^ 1;
    let table = service
        .tables
        .as_ref()
        .and_then(|tables| tables.get(other as usize));
    if let Some(table) = table {
        table.fill(rows);
        kernel.live(number)?.store(other, Ordering::Release);
        service.flip = kernel.grace.flipped();
        kernel.grace.begin();
    }
    Ok(())
}

/// An error for a number that no service can have.
pub fn check_number(number: u32) -> Result<(), PacketError> {
    if number < MAX_SERVICES {
        return Ok(());
    }
    Err(PacketError::new(format!(
        "services have numbers below {MAX_SERVICES}, not {number}"
    )))
}
