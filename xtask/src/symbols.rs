// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes the symbol blob that lies behind the image; its form and its reader are kernel/src/ksyms.rs.

use std::collections::BTreeMap;

use crate::inlined::Inlined;
use crate::ksyms::{Flags, HEADER, HOSTS, INLINED, MAGIC, NO_HOST, SITE, STACK, SYMBOL};
use crate::linked::Linked;

/// What every section's offset is a multiple of.
const SECTION_ALIGN: usize = 8;

/// Why no blob can be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SymbolError {
    /// A number does not fit into its field.
    #[error("symbol blob: {what} is {value}, more than its field holds ({limit})")]
    TooLarge {
        what: &'static str,
        value: u64,
        limit: u64,
    },
}

fn fit<T: TryFrom<u64>>(what: &'static str, value: u64, limit: u64) -> Result<T, SymbolError> {
    T::try_from(value).map_err(|_| SymbolError::TooLarge { what, value, limit })
}

fn word(what: &'static str, value: u64) -> Result<u32, SymbolError> {
    fit(what, value, u32::MAX.into())
}

/// A number that has half a word.
fn half(what: &'static str, value: usize) -> Result<u32, SymbolError> {
    fit::<u16>(what, value as u64, u16::MAX.into()).map(u32::from)
}

/// The functions that hooks may touch, by index: one an address, those of the compiler, without the notrace set.
pub(crate) fn sites(linked: &Linked, notrace: impl Fn(usize) -> bool) -> Vec<usize> {
    let mut sites: Vec<usize> = Vec::new();
    for (index, function) in linked.functions.iter().enumerate() {
        let entry = linked.entries.binary_search(&function.address).is_ok();
        if entry && !function.label && !function.synthetic && !notrace(index) {
            sites.push(index);
        }
    }
    // Functions may share an address: their site is one.
    sites.dedup_by_key(|index| linked.functions.get(*index).map(|f| f.address));
    sites
}

/// The blob of a kernel, its types (`btf`) and its code as linked included. `notrace(i)` says whether function `i` belongs to the
/// hook path; it keeps its name and loses its site. `stacks` are worst cases of stack in bytes, by address; `inlined` is what was
/// inlined away.
pub(crate) fn blob(
    linked: &Linked,
    notrace: impl Fn(usize) -> bool,
    stacks: &BTreeMap<u64, u64>,
    version: &str,
    btf: &[u8],
    inlined: &Inlined,
) -> Result<Vec<u8>, SymbolError> {
    let mut records = Vec::with_capacity(linked.functions.len() * SYMBOL);
    let hookable = sites(linked, &notrace);
    let mut sites = Vec::with_capacity(hookable.len() * SITE);
    let mut names = String::new();
    for (index, function) in linked.functions.iter().enumerate() {
        let site = hookable.binary_search(&index).is_ok();
        let before = index.checked_sub(1).and_then(|i| linked.functions.get(i));
        let alias = before.is_some_and(|before| before.address == function.address);
        let flags = [
            (site, Flags::SITE),
            (alias, Flags::ALIAS),
            (!alias && notrace(index), Flags::NOTRACE),
            (function.global, Flags::GLOBAL),
            (function.synthetic, Flags::SYNTHETIC),
            (function.label, Flags::LABEL),
        ];
        let flags = flags
            .iter()
            .filter(|(set, _)| *set)
            .fold(Flags::default(), |all, (_, flag)| all.with(*flag));
        let offset = word("an address", function.address - linked.base)?;
        let length = half("a name's length", function.name.len())?;
        for field in [
            offset,
            word("a function's size", function.size)?,
            word("the names' length", names.len() as u64)?,
            u32::from(flags.0) | length << 16,
        ] {
            records.extend(field.to_le_bytes());
        }
        names.push_str(&function.name);
        if site {
            sites.extend(offset.to_le_bytes());
        }
    }
    let mut worst = Vec::with_capacity(stacks.len() * STACK);
    for (address, bytes) in stacks {
        worst.extend(word("an address", address - linked.base)?.to_le_bytes());
        worst.extend(word("a function's stack", *bytes)?.to_le_bytes());
    }
    let mut away = Vec::with_capacity(inlined.len() * INLINED);
    for (name, hosts) in inlined {
        let site = |host: &&usize| hookable.binary_search(host).is_ok();
        let first = hosts.iter().filter(site);
        let then = hosts.iter().filter(|host| !site(host));
        let count = half(
            "the number of functions that one was inlined into",
            hosts.len(),
        )?;
        let mut fields = vec![
            word("the names' length", names.len() as u64)?,
            half("a name's length", name.len())? | count << 16,
        ];
        for host in first.chain(then).take(HOSTS) {
            fields.push(word("a symbol's number", *host as u64)?);
        }
        fields.resize(INLINED / 4, NO_HOST);
        away.extend(fields.into_iter().flat_map(u32::to_le_bytes));
        names.push_str(name);
    }
    let sections = [
        (linked.functions.len(), records),
        (sites.len() / SITE, sites),
        (names.len(), names.into_bytes()),
        (version.len(), version.as_bytes().to_vec()),
        (btf.len(), btf.to_vec()),
        (stacks.len(), worst),
        (linked.text().len(), linked.text().to_vec()),
        (inlined.len(), away),
    ];
    let mut blob = vec![0; HEADER];
    let mut fields = Vec::new();
    for (count, bytes) in &sections {
        blob.resize(blob.len().next_multiple_of(SECTION_ALIGN), 0);
        fields.push((
            word("a count", *count as u64)?,
            word("the length", blob.len() as u64)?,
        ));
        blob.extend(bytes);
    }
    let length = word("the length", blob.len() as u64)?;
    let [symbols, sites, names, version, btf, stacks, text, inlined] = fields[..] else {
        return Ok(blob);
    };
    let mut header = MAGIC.to_vec();
    header.extend(length.to_le_bytes());
    for (count, offset) in [symbols, names, sites, version] {
        header.extend(count.to_le_bytes());
        header.extend(offset.to_le_bytes());
    }
    header.extend([0; 4]);
    header.extend(linked.base.to_le_bytes());
    for (count, offset) in [btf, stacks, text, inlined] {
        header.extend(count.to_le_bytes());
        header.extend(offset.to_le_bytes());
    }
    for (place, byte) in blob.iter_mut().zip(header) {
        *place = byte;
    }
    Ok(blob)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ksyms::{Blob, BlobError};
    use crate::linked::NOP;
    use crate::linked::tests::made_up;

    const SITE_WORDS: &[u32] = &[NOP, NOP, 0xd65f_03c0];

    /// What was inlined away: names and the numbers of functions.
    fn inlined(functions: &[(&str, &[usize])]) -> Inlined {
        let into = |(name, hosts): &(&str, &[usize])| {
            ((*name).to_owned(), hosts.iter().copied().collect())
        };
        functions.iter().map(into).collect()
    }

    fn sample() -> Vec<u8> {
        let linked = made_up(&[
            ("smoltcp::socket::tcp::Socket::process", SITE_WORDS),
            ("workload_call", SITE_WORDS),
            ("core::str::from_utf8", &[0xd65f_03c0]),
            ("kernel::rcu::quiet", SITE_WORDS),
            ("OUTLINED_FUNCTION_0", SITE_WORDS),
            ("<kernel::udp::Socket>::process", SITE_WORDS),
        ]);
        let stacks = BTreeMap::from([(linked.base + 12, 160), (linked.base + 24, 16)]);
        let notrace = |i| i == 3;
        let inlined = inlined(&[
            ("<kernel::udp::Socket>::bind", &[0, 1, 2, 3, 5]),
            ("<kernel::tcp::Socket>::bind", &[2, 3]),
            ("kernel::rcu::poll", &[2, 3, 5]),
        ]);
        let version = "springboard 0.1.0";
        blob(&linked, notrace, &stacks, version, b"types", &inlined).expect("blob")
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = sample();
        let mut padded = bytes.clone();
        padded.resize(8192, 0);
        assert_eq!(Blob::length(&padded), Ok(bytes.len()));
        let blob = Blob::parse(&padded).expect("parse");
        let base = blob.base();
        assert_eq!(base, 0xffff_ffff_8000_0000);
        assert_eq!(blob.version(), "springboard 0.1.0");
        assert_eq!(blob.btf(), b"types");
        assert_eq!(blob.stack_of(base + 12), Some(160));
        assert_eq!(
            (blob.stack_of(base + 24), blob.stack_of(base)),
            (Some(16), None)
        );
        assert_eq!(blob.text().len(), 64);
        assert_eq!(blob.text()[8..12], 0xd65f_03c0_u32.to_le_bytes());
        assert_eq!(
            blob.sites().map(|site| site - base).collect::<Vec<_>>(),
            [0, 12, 52]
        );
        let names: Vec<_> = blob.symbols().map(|s| (s.name, s.flags.0)).collect();
        assert_eq!(
            names,
            [
                ("smoltcp::socket::tcp::Socket::process", Flags::SITE.0),
                ("workload_call", Flags::SITE.with(Flags::GLOBAL).0),
                ("core::str::from_utf8", 0),
                ("kernel::rcu::quiet", Flags::NOTRACE.0),
                (
                    "OUTLINED_FUNCTION_0",
                    Flags::SYNTHETIC.with(Flags::GLOBAL).0
                ),
                ("<kernel::udp::Socket>::process", Flags::SITE.0),
            ]
        );
        assert!(blob.has_site(base + 12) && !blob.has_site(base + 24));
        let (symbol, distance) = blob.lookup(base + 20).expect("lookup");
        assert_eq!((symbol.name, distance), ("workload_call", 8));
        assert!(blob.lookup(base + 64).is_none() && blob.lookup(base - 1).is_none());
    }

    #[test]
    fn a_body_with_two_names_is_one_site() {
        let mut linked = made_up(&[("a", SITE_WORDS), ("b", SITE_WORDS)]);
        for at in [0, 2] {
            let mut twin = linked.functions[at].clone();
            twin.name.push_str("_twin");
            linked.functions.insert(at + 1, twin);
        }
        let (stacks, inlined) = (BTreeMap::new(), Inlined::new());
        let bytes = blob(&linked, |index| index >= 2, &stacks, "", &[], &inlined).expect("blob");
        let blob = Blob::parse(&bytes).expect("parse");
        let flags: Vec<_> = blob.symbols().map(|s| (s.name, s.flags)).collect();
        let (first, alias) = (Flags::GLOBAL, Flags::ALIAS.with(Flags::GLOBAL));
        assert_eq!(
            flags,
            [
                ("a", first.with(Flags::SITE)),
                ("a_twin", alias),
                ("b", first.with(Flags::NOTRACE)),
                ("b_twin", alias)
            ]
        );
        assert_eq!(blob.sites().collect::<Vec<_>>(), [blob.base()]);
        let end = blob.symbols().last().map_or(0, |s| s.address) + 64;
        for address in (blob.base() - 4..end).step_by(4) {
            for near in 0..6 {
                let (found, known) = (blob.index_near(near, address), blob.index(address));
                assert_eq!(found, known, "{address:#x} from {near}");
            }
        }
    }

    #[test]
    fn names_are_found_or_the_nearest_are() {
        let bytes = sample();
        let blob = Blob::parse(&bytes).expect("parse");
        let names = |name| blob.by_name(name).map(|s| s.name).collect::<Vec<_>>();
        assert_eq!(names("workload_call"), ["workload_call"]);
        assert_eq!(names("process").len(), 2, "ambiguous");
        assert_eq!(
            names("udp::Socket::process"),
            ["<kernel::udp::Socket>::process"]
        );
        assert!(names("workload_cal").is_empty());
        let nearest = blob.nearest::<2>("worklod_call");
        assert_eq!(nearest[0].map(|s| s.name), Some("workload_call"));
        let nearest = blob.nearest::<9>("Socket::proces");
        assert_eq!(
            nearest[0].map(|s| s.name),
            Some("smoltcp::socket::tcp::Socket::process")
        );
        assert_eq!(
            nearest.iter().flatten().count(),
            3,
            "only what can be hooked"
        );
        assert_eq!(blob.matching("*::process").count(), 2);
    }

    #[test]
    fn what_was_inlined_away_says_where_it_went() {
        let bytes = sample();
        let blob = Blob::parse(&bytes).expect("parse");
        let found = |name| {
            let mut found: Vec<_> = blob.inlined_by_name(name).collect();
            let only = found.pop().filter(|_| found.is_empty())?;
            let hosts: Vec<_> = only.hosts.iter().flatten().map(|s| s.name).collect();
            Some((only.name, only.count, hosts))
        };
        // The function with a site first, though another stands before it.
        let (udp, unsited) = ("<kernel::udp::Socket>::process", "core::str::from_utf8");
        let quiet = "kernel::rcu::quiet";
        let poll = "kernel::rcu::poll";
        assert_eq!(
            found("rcu::poll"),
            Some((poll, 3, vec![udp, unsited, quiet]))
        );
        assert_eq!(found(poll), found("poll"));
        let (_, count, hosts) = found("udp::Socket::bind").expect("one of two");
        assert_eq!((count, hosts.len(), hosts[2]), (5, HOSTS, udp));
        let (_, count, hosts) = found("tcp::Socket::bind").expect("the other");
        assert_eq!((count, hosts), (2, vec![unsited, quiet]));
        assert_eq!(blob.inlined_by_name("bind").count(), 2);
        assert_eq!((found("oll"), found("process")), (None, None));
        assert_eq!(blob.by_name("poll").count(), 0);
    }

    #[test]
    fn damaged_blobs_are_refused_or_harmless() {
        let good = sample();
        for length in 0..good.len() {
            assert!(Blob::parse(&good[..length]).is_err(), "{length}");
        }
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                if let Ok(blob) = Blob::parse(&bad) {
                    let _ = (blob.lookup(blob.base() + 20), blob.nearest::<3>("x"));
                    let inlined = blob.inlined_by_name("bind");
                    let inlined = inlined.flat_map(|i| i.hosts).flatten().count();
                    assert!(inlined + blob.symbols().count() + blob.sites().count() < 1000);
                }
            }
        }
        let mut swapped = good.clone();
        swapped[HEADER] = 0xff;
        assert_eq!(
            Blob::parse(&swapped).err(),
            Some(BlobError::Record("symbol", 0))
        );
    }
}
