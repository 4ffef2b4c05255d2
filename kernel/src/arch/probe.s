// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Copies from an address at which there may be nothing. A data abort at one of the loads that are named is not the end: trap_sync
// sets the program counter to where the table in probe.rs says.

.section .text.probe, "ax"

// probe_copy(to: *mut u8, from: *const u8, bytes: usize) -> usize: how many bytes were copied, from the front.
// Base registers are moved after the loads, so that a fault leaves them at what was not copied.
.global probe_copy
probe_copy:
    mov     x3, x0
1:  cmp     x2, #8
    b.lo    probe_bytes
.global probe_load_word
probe_load_word:
    ldr     x4, [x1]
    str     x4, [x0], #8
    add     x1, x1, #8
    sub     x2, x2, #8
    b       1b
// The rest of less than a word, or of a word that could not be loaded, up to the byte that cannot.
.global probe_bytes
probe_bytes:
    cbz     x2, probe_end
.global probe_load_byte
probe_load_byte:
    ldrb    w4, [x1]
    strb    w4, [x0], #1
    add     x1, x1, #1
    sub     x2, x2, #1
    b       probe_bytes
.global probe_end
probe_end:
    sub     x0, x0, x3
    ret
