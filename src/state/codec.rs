//! A state as bytes, and back.
//!
//! ```text
//! magic · version · stamp · identity · znodes (paths without what they share with the one before) · holds · what went lately · addresses of names · checksum
//! ```
//!
//! The stamp says until when the state was true. It has a length and a checksum of its own, so that it can be
//! written again without the rest. Numbers are LEB128, signed ones zigzag. Invariant: bytes that were not written
//! by [`encode`] of this version give an error and never a panic, whatever they are; nothing is allocated on
//! the word of a count.

use std::{collections::BTreeMap, net::IpAddr, ops::Range, sync::Arc};

use imbl::OrdMap;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{
    Identity, Restored,
    clock::Stamp,
    recorder::{Kept, Picture, Znode},
};
use crate::{
    model::{Health, Instance, Instances, Origin, Service, Socket, Source, Weight},
    registry::{
        Addresses, Moment, Stat, format,
        guard::{Gone, Resumed, Trip},
    },
};

const MAGIC: &[u8; 8] = b"mkstate\n";
const VERSION: u64 = 3;
const CHECKSUM: usize = 16;

/// Where the stamp is, behind the version, which is one byte: the start of the machine, both times, a checksum.
pub const STAMP: Range<usize> = 9..49;

const BAD: u8 = 1;
const GOOD: u8 = 2;

/// Why bytes are no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("it is no state of MeshKeeper")]
    Foreign,
    #[error("it has version {0}; this MeshKeeper reads version {VERSION}")]
    Version(u64),
    #[error("its checksum does not fit: it is incomplete or was changed")]
    Checksum,
    #[error("it ends too early, or holds what was never written")]
    Malformed,
}

type Decoded<T> = Result<T, DecodeError>;

/// A stamp as it stands in a state.
pub fn stamp(stamp: &Stamp) -> [u8; 40] {
    let mut out = [0; 40];
    out[..16].copy_from_slice(&stamp.boot);
    out[16..24].copy_from_slice(&stamp.at.time.to_le_bytes());
    out[24..32].copy_from_slice(&stamp.at.wall.to_le_bytes());
    let checksum = xxh3_64(&out[..32]);
    out[32..].copy_from_slice(&checksum.to_le_bytes());
    out
}

fn stamped(bytes: &[u8; 40]) -> Decoded<Stamp> {
    let number = |at: usize| {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[at..at + 8]);
        number
    };
    if xxh3_64(&bytes[..32]).to_le_bytes() != number(32) {
        return Err(DecodeError::Checksum);
    }
    let mut boot = [0; 16];
    boot.copy_from_slice(&bytes[..16]);
    let at = Moment {
        time: i64::from_le_bytes(number(16)),
        wall: i64::from_le_bytes(number(24)),
    };
    Ok(Stamp { boot, at })
}

pub fn encode(identity: &Identity, written: &Stamp, picture: &Picture) -> Vec<u8> {
    // About what a znode takes, so that the buffer need not grow often.
    let mut out = Writer(Vec::with_capacity(256 + picture.znodes.len() * 128));
    out.0.extend_from_slice(MAGIC);
    out.number(VERSION);
    out.0.extend_from_slice(&stamp(written));
    let Identity {
        name,
        connect,
        root,
        format,
    } = identity;
    for text in [name, connect, root, format] {
        out.text(text);
    }
    out.count(picture.znodes.len());
    let mut last: &str = "";
    for (path, znode) in &picture.znodes {
        out.path(path, last);
        out.znode(znode);
        last = path;
    }
    out.kept(&picture.kept);
    let checksum = xxh3_128(&out.0[STAMP.end..]);
    out.0.extend_from_slice(&checksum.to_le_bytes());
    out.0
}

/// With when it was true; its times are those of that clock.
pub fn decode(bytes: &[u8]) -> Decoded<(Identity, Stamp, Restored)> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(DecodeError::Foreign)?;
    let version = Reader(rest).number()?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let (head, rest) = bytes
        .split_at_checked(STAMP.end)
        .ok_or(DecodeError::Checksum)?;
    let head = head[STAMP].try_into().map_err(|_| DecodeError::Malformed)?;
    let end = rest.len().checked_sub(CHECKSUM);
    let (body, checksum) = end
        .and_then(|end| rest.split_at_checked(end))
        .ok_or(DecodeError::Checksum)?;
    if xxh3_128(body).to_le_bytes() != checksum {
        return Err(DecodeError::Checksum);
    }
    let mut input = Reader(body);
    let identity = Identity {
        name: input.text()?,
        connect: input.text()?,
        root: input.text()?,
        format: input.text()?,
    };
    let restored = input.restored(&identity)?;
    if !input.0.is_empty() {
        return Err(DecodeError::Malformed);
    }
    Ok((identity, stamped(head)?, restored))
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    fn signed(&mut self, number: i64) {
        self.number((number.wrapping_shl(1) ^ (number >> 63)).cast_unsigned());
    }

    fn count(&mut self, count: usize) {
        self.number(count as u64);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn maybe(&mut self, text: Option<&str>) {
        self.0.push(u8::from(text.is_some()));
        if let Some(text) = text {
            self.text(text);
        }
    }

    fn path(&mut self, path: &str, last: &str) {
        let same = path.bytes().zip(last.bytes()).take_while(|(a, b)| a == b);
        let shared = same.count();
        self.count(shared);
        self.bytes(&path.as_bytes()[shared..]);
    }

    fn znode(&mut self, znode: &Znode) {
        let bad = if znode.bad { BAD } else { 0 };
        let good = if znode.good.is_some() { GOOD } else { 0 };
        self.0.push(bad | good);
        self.stat(&znode.stat);
        self.bytes(&znode.data);
        if let Some((stat, data)) = znode.good.as_deref() {
            self.stat(stat);
            self.bytes(data);
        }
    }

    fn stat(&mut self, stat: &Stat) {
        let Stat {
            czxid,
            mzxid,
            ctime,
            mtime,
            ephemeral_owner,
        } = *stat;
        self.signed(czxid);
        self.signed(mzxid.wrapping_sub(czxid));
        self.signed(ctime);
        self.signed(mtime.wrapping_sub(ctime));
        self.signed(ephemeral_owner);
    }

    fn kept(&mut self, kept: &Kept) {
        let Kept {
            holds,
            recent,
            addresses,
            unseen: _,
        } = kept;
        self.0.push(u8::from(holds.trip.is_some()));
        if let Some(trip) = holds.trip {
            self.signed(trip.since);
            self.count(trip.target);
        }
        self.count(holds.services.len());
        for resumed in holds.resumable() {
            self.service(&resumed.service);
            self.count(resumed.target);
            self.count(resumed.held.len());
            for (instance, since) in &resumed.held {
                self.instance(instance);
                self.signed(*since);
            }
        }
        self.count(recent.len());
        for gone in recent {
            self.service(&gone.service);
            self.instance(&gone.instance);
            self.signed(gone.at);
        }
        self.addresses(addresses);
    }

    fn service(&mut self, service: &Service) {
        self.text(&service.name);
        self.text(&service.host);
    }

    fn instance(&mut self, instance: &Instance) {
        let origin = &instance.origin;
        self.socket(instance.socket());
        self.number(u64::from(instance.weight.get()));
        self.maybe(instance.own_id.as_deref());
        self.maybe(instance.zone.as_deref());
        self.count(instance.metadata.iter().count());
        for (key, value) in instance.metadata.iter() {
            self.text(key);
            self.text(value);
        }
        self.text(&origin.znode);
        self.text(origin.format);
        self.signed(origin.czxid);
        self.signed(origin.mzxid);
        self.signed(origin.session);
    }

    fn addresses(&mut self, names: &Addresses) {
        self.count(names.len());
        for (name, addresses) in names {
            self.bytes(name.as_bytes());
            self.count(addresses.len());
            addresses.iter().for_each(|address| self.address(*address));
        }
    }

    fn socket(&mut self, (address, port): Socket) {
        self.address(address);
        self.number(u64::from(port));
    }

    fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.bytes(&address.octets()),
            IpAddr::V6(address) => self.bytes(&address.octets()),
        }
    }
}

/// What all instances of a registry have in common.
struct Of {
    registry: Arc<str>,
    source: Arc<Source>,
}

impl Of {
    fn new(identity: &Identity) -> Self {
        let source = Source {
            registry: identity.name.as_str().into(),
            root: identity.root.as_str().into(),
        };
        Self {
            registry: identity.name.as_str().into(),
            source: Arc::new(source),
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Decoded<u8> {
        let (byte, rest) = self.0.split_first().ok_or(DecodeError::Malformed)?;
        self.0 = rest;
        Ok(*byte)
    }

    fn number(&mut self) -> Decoded<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(DecodeError::Malformed)
    }

    fn signed(&mut self) -> Decoded<i64> {
        let number = self.number()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    fn count(&mut self) -> Decoded<usize> {
        usize::try_from(self.number()?).map_err(|_| DecodeError::Malformed)
    }

    fn bytes(&mut self) -> Decoded<&'a [u8]> {
        let length = self.count()?;
        let (bytes, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(DecodeError::Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> Decoded<String> {
        let bytes = self.bytes()?.to_vec();
        String::from_utf8(bytes).map_err(|_| DecodeError::Malformed)
    }

    fn path(&mut self, last: &str) -> Decoded<Arc<str>> {
        let shared = self.count()?;
        let mut path = last
            .as_bytes()
            .get(..shared)
            .ok_or(DecodeError::Malformed)?
            .to_vec();
        path.extend_from_slice(self.bytes()?);
        let path = String::from_utf8(path).map_err(|_| DecodeError::Malformed)?;
        Ok(path.into())
    }

    fn restored(&mut self, identity: &Identity) -> Decoded<Restored> {
        let mut znodes = Vec::new();
        let mut last: Arc<str> = Arc::from("");
        for _ in 0..self.count()? {
            let path = self.path(&last)?;
            znodes.push((Arc::clone(&path), Arc::new(self.znode()?)));
            last = path;
        }
        let of = Of::new(identity);
        let (trip, held) = self.holds(&of)?;
        let mut recent = Vec::new();
        for _ in 0..self.count()? {
            recent.push(Gone {
                service: self.service(&of)?,
                instance: self.instance(&of)?,
                at: self.signed()?,
            });
        }
        let kept = Kept {
            addresses: self.addresses()?,
            ..Kept::default()
        };
        let znodes = OrdMap::from_iter(znodes);
        Ok(Restored {
            away: 0,
            picture: Picture { znodes, kept },
            held,
            trip,
            recent,
        })
    }

    fn znode(&mut self) -> Decoded<Znode> {
        let flags = self.byte()?;
        let (stat, data) = (self.stat()?, self.bytes()?.into());
        let good = if flags & GOOD == 0 {
            None
        } else {
            Some(Box::new((self.stat()?, self.bytes()?.into())))
        };
        let bad = flags & BAD != 0;
        Ok(Znode {
            stat,
            data,
            bad,
            good,
        })
    }

    fn stat(&mut self) -> Decoded<Stat> {
        let czxid = self.signed()?;
        let mzxid = self.signed()?.wrapping_add(czxid);
        let ctime = self.signed()?;
        let mtime = self.signed()?.wrapping_add(ctime);
        Ok(Stat {
            czxid,
            mzxid,
            ctime,
            mtime,
            ephemeral_owner: self.signed()?,
        })
    }

    fn holds(&mut self, of: &Of) -> Decoded<(Option<Trip>, Vec<Resumed>)> {
        let trip = match self.byte()? {
            0 => None,
            _ => Some(Trip {
                since: self.signed()?,
                target: self.count()?,
            }),
        };
        let mut services = Vec::new();
        for _ in 0..self.count()? {
            let (service, target) = (self.service(of)?, self.count()?);
            let mut held = Vec::new();
            for _ in 0..self.count()? {
                held.push((self.instance(of)?, self.signed()?));
            }
            services.push(Resumed {
                service,
                target,
                held,
            });
        }
        Ok((trip, services))
    }

    fn service(&mut self, of: &Of) -> Decoded<Arc<Service>> {
        Ok(Arc::new(Service {
            name: self.text()?.into(),
            host: self.text()?.into(),
            registry: Arc::clone(&of.registry),
            instances: Instances::default(),
        }))
    }

    fn instance(&mut self, of: &Of) -> Decoded<Arc<Instance>> {
        let (address, port) = self.socket()?;
        let weight = u32::try_from(self.number()?).ok().and_then(Weight::new);
        let (own_id, zone) = (self.maybe()?, self.maybe()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..self.count()? {
            metadata.insert(self.text()?, self.text()?);
        }
        Ok(Arc::new(Instance {
            own_id: own_id.map(String::into_boxed_str),
            address,
            port,
            weight: weight.ok_or(DecodeError::Malformed)?,
            zone: zone.map(Arc::from),
            // Nothing else is held.
            health: Health::Healthy,
            priority: 0,
            metadata: metadata.into(),
            origin: Origin {
                source: Arc::clone(&of.source),
                znode: self.text()?.into(),
                format: format::named(&self.text()?),
                czxid: self.signed()?,
                mzxid: self.signed()?,
                session: self.signed()?,
            },
        }))
    }

    fn maybe(&mut self) -> Decoded<Option<String>> {
        match self.byte()? {
            0 => Ok(None),
            _ => self.text().map(Some),
        }
    }

    fn addresses(&mut self) -> Decoded<Addresses> {
        let mut names = Addresses::new();
        for _ in 0..self.count()? {
            let name = self.text()?;
            let mut addresses = Vec::new();
            for _ in 0..self.count()? {
                addresses.push(self.address()?);
            }
            names.insert(name.into(), addresses.into());
        }
        Ok(names)
    }

    fn socket(&mut self) -> Decoded<Socket> {
        let address = self.address()?;
        let port = u16::try_from(self.number()?).map_err(|_| DecodeError::Malformed)?;
        Ok((address, port))
    }

    fn address(&mut self) -> Decoded<IpAddr> {
        let octets = self.bytes()?;
        let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
        let v6 = || <[u8; 16]>::try_from(octets).map(IpAddr::from);
        v4.or_else(|_| v6()).map_err(|_| DecodeError::Malformed)
    }
}

#[cfg(test)]
mod tests;
