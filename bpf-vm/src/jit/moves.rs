// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moves that happen at once, put into an order in which they can be done one by one.
use ::alloc::vec::Vec;

use a64::Reg as A64;

/// Register moves (to, from) that have the effect of all `moves` at once. No register is written twice by `moves`;
/// `scratch` is in none of them, and breaks cycles.
pub(super) fn in_order(mut moves: Vec<(A64, A64)>, scratch: A64) -> Vec<(A64, A64)> {
    moves.retain(|(to, from)| to != from);
    let mut order = Vec::with_capacity(moves.len() + 1);
    while let Some(&(_, cycle)) = moves.first() {
        let free = |&(to, _): &(A64, A64)| !moves.iter().any(|(_, from)| *from == to);
        if let Some(ready) = moves.iter().position(free) {
            order.push(moves.swap_remove(ready));
            continue;
        }
        order.push((scratch, cycle));
        for (_, from) in moves.iter_mut().filter(|(_, from)| *from == cycle) {
            *from = scratch;
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All 6^5 ways to move six registers to five of them.
    #[test]
    fn every_way_ends_as_if_done_at_once() {
        const REGISTERS: usize = 6;
        let register = |number: usize| A64::new(number as u8).unwrap();
        for way in 0..REGISTERS.pow(5) {
            let moves: Vec<_> = (0..5)
                .map(|to| (to, way / REGISTERS.pow(to as u32) % REGISTERS))
                .collect();
            let mut is: [usize; REGISTERS + 1] = core::array::from_fn(|number| number);
            let registers = moves
                .iter()
                .map(|(to, from)| (register(*to), register(*from)));
            for (to, from) in in_order(registers.collect(), register(REGISTERS)) {
                is[usize::from(to.number())] = is[usize::from(from.number())];
            }
            for (to, from) in moves {
                assert_eq!(is[to], from, "way {way}");
            }
        }
    }
}
