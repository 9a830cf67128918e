//! A state as bytes, and back.
//!
//! ```text
//! magic · version · identity · time · znodes (paths without what they share with the one before) · holds · addresses of names · checksum
//! ```
//!
//! It refuses to know files. Numbers are LEB128, signed ones zigzag. Invariant: bytes that were not written
//! by [`encode`] of this version give an error and never a panic, whatever they are; nothing is allocated on
//! the word of a count.

use std::{net::IpAddr, sync::Arc};

use imbl::OrdMap;
use xxhash_rust::xxh3::xxh3_128;

use super::{
    Identity, Restored,
    recorder::{Picture, Znode, held},
};
use crate::{
    model::Socket,
    registry::{
        Addresses, Stat,
        guard::{Resumed, Time, Trip},
    },
};

const MAGIC: &[u8; 8] = b"mkstate\n";
const VERSION: u64 = 2;
const CHECKSUM: usize = 16;

const BAD: u8 = 1;
const GOOD: u8 = 2;
const GONE: u8 = 4;

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

pub fn encode(identity: &Identity, written: Time, picture: &Picture) -> Vec<u8> {
    // About what a znode takes, so that the buffer need not grow often.
    let mut out = Writer(Vec::with_capacity(256 + picture.znodes.len() * 128));
    out.0.extend_from_slice(MAGIC);
    out.number(VERSION);
    let Identity {
        name,
        connect,
        root,
        format,
    } = identity;
    for text in [name, connect, root, format] {
        out.bytes(text.as_bytes());
    }
    out.signed(written);
    let gone = held(&picture.gone, &picture.holds);
    out.count(picture.znodes.len() + gone.len());
    let mut last: &str = "";
    let there = picture.znodes.iter().map(|(path, znode)| (path, znode, 0));
    let gone = gone.iter().map(|(path, znode)| (path, znode, GONE));
    for (path, znode, flags) in there.chain(gone) {
        out.path(path, last);
        out.znode(znode, flags);
        last = path;
    }
    out.holds(picture);
    out.addresses(&picture.addresses);
    let checksum = xxh3_128(&out.0);
    out.0.extend_from_slice(&checksum.to_le_bytes());
    out.0
}

pub fn decode(bytes: &[u8]) -> Decoded<(Identity, Restored)> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(DecodeError::Foreign)?;
    let version = Reader(rest).number()?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let end = bytes.len().checked_sub(CHECKSUM);
    let (body, checksum) = end
        .and_then(|end| bytes.split_at_checked(end))
        .ok_or(DecodeError::Checksum)?;
    if xxh3_128(body).to_le_bytes() != checksum {
        return Err(DecodeError::Checksum);
    }
    let mut input = Reader(&body[MAGIC.len()..]);
    input.number()?;
    let identity = Identity {
        name: input.text()?,
        connect: input.text()?,
        root: input.text()?,
        format: input.text()?,
    };
    let known = input.signed()?;
    let mut picture = input.picture()?;
    let (trip, held) = input.holds()?;
    picture.addresses = input.addresses()?;
    if !input.0.is_empty() {
        return Err(DecodeError::Malformed);
    }
    let restored = Restored {
        known,
        picture,
        held,
        trip,
    };
    Ok((identity, restored))
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

    fn path(&mut self, path: &str, last: &str) {
        let same = path.bytes().zip(last.bytes()).take_while(|(a, b)| a == b);
        let shared = same.count();
        self.count(shared);
        self.bytes(&path.as_bytes()[shared..]);
    }

    fn znode(&mut self, znode: &Znode, flags: u8) {
        let bad = if znode.bad { BAD } else { 0 };
        let good = if znode.good.is_some() { GOOD } else { 0 };
        self.0.push(flags | bad | good);
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

    fn holds(&mut self, picture: &Picture) {
        let holds = &picture.holds;
        self.0.push(u8::from(holds.trip.is_some()));
        if let Some(trip) = holds.trip {
            self.signed(trip.since);
            self.count(trip.target);
        }
        self.count(holds.services.len());
        for (name, hold) in &holds.services {
            self.bytes(name.as_bytes());
            self.count(hold.target);
            self.count(hold.held.len());
            for (socket, held) in &hold.held {
                self.socket(*socket);
                self.signed(held.since);
            }
        }
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

    fn picture(&mut self) -> Decoded<Picture> {
        let (mut there, mut gone) = (Vec::new(), Vec::new());
        let mut last: Arc<str> = Arc::from("");
        for _ in 0..self.count()? {
            let path = self.path(&last)?;
            let (znode, flags) = self.znode()?;
            let of = if flags & GONE == 0 {
                &mut there
            } else {
                &mut gone
            };
            of.push((Arc::clone(&path), Arc::new(znode)));
            last = path;
        }
        Ok(Picture {
            znodes: OrdMap::from_iter(there),
            gone: OrdMap::from_iter(gone),
            ..Picture::default()
        })
    }

    fn znode(&mut self) -> Decoded<(Znode, u8)> {
        let flags = self.byte()?;
        let (stat, data) = (self.stat()?, self.bytes()?.into());
        let good = if flags & GOOD == 0 {
            None
        } else {
            Some(Box::new((self.stat()?, self.bytes()?.into())))
        };
        let bad = flags & BAD != 0;
        let znode = Znode {
            stat,
            data,
            bad,
            good,
        };
        Ok((znode, flags))
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

    fn holds(&mut self) -> Decoded<(Option<Trip>, Vec<Resumed>)> {
        let trip = match self.byte()? {
            0 => None,
            _ => Some(Trip {
                since: self.signed()?,
                target: self.count()?,
            }),
        };
        let mut services = Vec::new();
        for _ in 0..self.count()? {
            let (service, target) = (self.text()?.into(), self.count()?);
            let mut held = Vec::new();
            for _ in 0..self.count()? {
                held.push((self.socket()?, self.signed()?));
            }
            services.push(Resumed {
                service,
                target,
                held,
            });
        }
        Ok((trip, services))
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
