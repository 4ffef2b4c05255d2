// SPDX-License-Identifier: MIT OR Apache-2.0
//! Read-modify-write: in one instruction where the core has it, else by exclusive loads and stores.
use super::*;

impl Selector<'_, '_> {
    /// Read-modify-write in one instruction (FEAT_LSE). Those that fetch are ordered both ways, as Linux has them.
    pub(super) fn atomic_lse(
        &mut self,
        op: AtomicOp,
        size: Size,
        rn: RegOrSp,
        src: A64,
        compared: Option<A64>,
        dst: A64,
    ) {
        let (order, sf, size) = (op.fetches(), size_sf(size), mem_size(size));
        let lse = match op {
            AtomicOp::Add | AtomicOp::FetchAdd => Lse::Ldadd,
            AtomicOp::Or | AtomicOp::FetchOr => Lse::Ldset,
            AtomicOp::And | AtomicOp::FetchAnd => Lse::Ldclr,
            AtomicOp::Xor | AtomicOp::FetchXor => Lse::Ldeor,
            AtomicOp::Xchg => Lse::Swp,
            AtomicOp::Cmpxchg => {
                // CAS has the comparand and the old value in one register. r10 as the source is in x17, so that only the
                // base can be in `dst`, and x16 is free.
                let old = match () {
                    () if dst != src && rn != dst => dst,
                    () if src == X17 => X16,
                    () => X17,
                };
                self.copy(Sf::X, old, compared.unwrap_or(old));
                self.asm.emit(Inst::Cas {
                    size,
                    acquire: true,
                    release: true,
                    rs: old.into(),
                    rt: src.into(),
                    rn,
                });
                return self.copy(Sf::X, dst, old);
            }
        };
        let rs = if lse == Lse::Ldclr {
            self.asm.emit(ops::mvn(sf, X17, src));
            X17
        } else {
            src
        };
        self.asm.emit(Inst::Atomic {
            op: lse,
            size,
            acquire: order,
            release: order,
            rs: rs.into(),
            rt: if op.fetches() { dst.into() } else { XZR },
            rn,
        });
    }

    /// Read-modify-write by load-exclusive and store-exclusive: x17 the old value, x14 the new, x15 the status.
    ///
    /// What fetches is ordered both ways by STLXR and the DMB after it.
    pub(super) fn atomic_exclusive(
        &mut self,
        op: AtomicOp,
        size: Size,
        rn: RegOrSp,
        src: Name,
        compared: Option<A64>,
        dst: A64,
    ) {
        let (sf, size) = (size_sf(size), mem_size(size));
        let again = self.asm.pc();
        // r10 is in x14, which what is computed from it goes to as well: each try makes it anew.
        let src = self.read(src, X14);
        let (new, compute) = match op {
            AtomicOp::Add | AtomicOp::FetchAdd => (X14, Some(ops::add(sf, X14, X17, src))),
            AtomicOp::Or | AtomicOp::FetchOr => (X14, Some(ops::orr(sf, X14, X17, src))),
            AtomicOp::And | AtomicOp::FetchAnd => (X14, Some(ops::and(sf, X14, X17, src))),
            AtomicOp::Xor | AtomicOp::FetchXor => (X14, Some(ops::eor(sf, X14, X17, src))),
            AtomicOp::Xchg | AtomicOp::Cmpxchg => (src, None),
        };
        self.asm.emit(Inst::Ordered {
            op: OrderedOp::Ldxr,
            size,
            rt: X17.into(),
            rn,
        });
        if let Some(compared) = compared {
            self.asm.emit(ops::cmp(sf, X17, compared));
            // Over the store and the retry.
            self.asm.emit(ops::b_cond(Flags::Ne).with_offset(12));
        }
        if let Some(compute) = compute {
            self.asm.emit(compute);
        }
        self.asm.emit(Inst::StoreExclusive {
            op: match op.fetches() {
                true => StoreExclusiveOp::Stlxr,
                false => StoreExclusiveOp::Stxr,
            },
            size,
            rs: X15.into(),
            rt: new.into(),
            rn,
        });
        self.asm.branch_to(ops::cbnz(Sf::W, X15), again);
        if op.fetches() {
            // DMB ISH: option 0b1011 (Arm ARM C6.2, DMB).
            self.asm
                .emit(UImm4::new(0b1011).map(|option| Inst::Barrier {
                    op: BarrierOp::Dmb,
                    option,
                }));
            self.copy(Sf::X, dst, X17);
        }
    }
}
