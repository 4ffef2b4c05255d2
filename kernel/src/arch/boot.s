// SPDX-License-Identifier: MIT OR Apache-2.0
//
// From the boot loader to upper-half Rust: the only code that runs without our page tables.
//
// In:  x0 = physical address of the device tree (or whatever the firmware leaves there), MMU and data cache
//      off, EL2 or EL1, loaded at any 4 KiB aligned address (Linux arm64 boot protocol).
// Out: EL1, MMU on, W^X already in force: text RX, rodata and the appended blob RO, data RW-NX.

.equ PAGE_TABLE,   0b11                     // descriptor: table, or page at level 3
.equ BLOCK,        0b01
.equ AF,           1 << 10
.equ SH_INNER,     0b11 << 8
.equ ATTR_NORMAL,  2 << 2                   // index into MAIR_EL1, see MAIR below
.equ AP_RO,        1 << 7
.equ PXN,          1 << 53
.equ UXN,          1 << 54
.equ NORMAL,       AF | SH_INNER | ATTR_NORMAL | UXN
.equ MEM_RX,       NORMAL | AP_RO
.equ MEM_RO,       NORMAL | AP_RO | PXN
.equ MEM_RW,       NORMAL | PXN

.equ MAIR,         0x44ff0400               // 0: Device-nGnRnE, 1: Device-nGnRE, 2: Normal write-back, 3: Normal non-cacheable
// T0SZ = T1SZ = 25 (39 bits), write-back inner shareable walks, 4 KiB granules on both sides; IPS is added at run time
.equ TCR,          25 | (0b01 << 8) | (0b01 << 10) | (0b11 << 12) | (25 << 16) | (0b01 << 24) | (0b01 << 26) | (0b11 << 28) | (0b10 << 30)
// RES1 bits of Armv8.0 (Arm ARM, SCTLR_EL1)
.equ SCTLR_RES1,   (1 << 11) | (1 << 20) | (1 << 22) | (1 << 23) | (1 << 28) | (1 << 29)
// M, C, SA, I, and WXN: whatever is writable is never executable, whatever its descriptor says
.equ SCTLR_ON,     SCTLR_RES1 | (1 << 0) | (1 << 2) | (1 << 3) | (1 << 12) | (1 << 19)

.section .head, "ax"
.global _start
_start:
    b       primary_entry
    .long   0
    .quad   0                               // text_offset: anywhere
    .quad   _image_bytes                     // image_size: xtask writes the file's size here
    .quad   0b1010                          // little endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .long   0

.section .text.boot, "ax"

primary_entry:
    mov     x20, x0
    mov     x22, #0
    bl      enter_el1
    bl      build_tables
    bl      mmu_on
    ldr     x8, =primary_upper
    br      x8

// PSCI's CPU_ON and the spin table both come here. One core at a time, so what it needs lies in one place.
.global secondary_entry
secondary_entry:
    bl      enter_el1
    bl      mmu_on
    ldr     x8, =secondary_upper
    br      x8

// Drops to EL1 if this is EL2; everything EL2 could trap is opened. Returns by eret or ret. Clobbers x8-x11.
enter_el1:
    mrs     x8, CurrentEL
    cmp     x8, #(2 << 2)
    b.ne    2f
    mov     x8, #(1 << 31)                  // HCR_EL2.RW: EL1 is AArch64; nothing trapped, no stage 2
    msr     hcr_el2, x8
    isb                                     // E2H is 0 from here on, or the names below would mean other registers
    mov     x8, #3                          // EL1 may use the physical counter and timer
    msr     cnthctl_el2, x8
    msr     cntvoff_el2, xzr
    mrs     x8, midr_el1
    msr     vpidr_el2, x8
    mrs     x8, mpidr_el1
    msr     vmpidr_el2, x8
    mov     x8, #0x33ff                     // CPTR_EL2: RES1 bits, no traps
    msr     cptr_el2, x8
    msr     hstr_el2, xzr
    msr     vttbr_el2, xzr
    mov     x8, #0
    mrs     x9, id_aa64dfr0_el1             // PMUVer: 0 and 0xf mean that there is no PMCR_EL0
    ubfx    x9, x9, #8, #4
    sub     x9, x9, #1
    cmp     x9, #0xe
    b.hs    3f
    mrs     x8, pmcr_el0                    // MDCR_EL2.HPMN = PMCR_EL0.N: all event counters belong to EL1
    ubfx    x8, x8, #11, #5
3:  msr     mdcr_el2, x8
    mrs     x8, id_aa64pfr0_el1             // GIC system registers there? then EL1 uses them
    ubfx    x8, x8, #24, #4
    cbz     x8, 1f
    mrs     x8, S3_4_C12_C9_5               // ICC_SRE_EL2: SRE, Enable
    mov     x9, #0b1001
    orr     x8, x8, x9
    msr     S3_4_C12_C9_5, x8
    isb
    mrs     x8, S3_4_C12_C9_5
    tbz     x8, #0, 1f                      // EL3 keeps the system registers for itself: then there is no ICH_HCR_EL2
    msr     S3_4_C12_C11_0, xzr             // ICH_HCR_EL2: no virtual interrupts
1:  ldr     x8, =SCTLR_RES1
    msr     sctlr_el1, x8
    mov     x8, #0x3c5                      // EL1h, D A I F masked
    msr     spsr_el2, x8
    msr     elr_el2, x30
    eret
2:  msr     daifset, #0xf
    msr     spsel, #1
    ldr     x8, =SCTLR_RES1
    msr     sctlr_el1, x8
    isb
    ret

// Writes the first page tables: an identity map of the boot code, the image at its linked address with its
// final permissions, and the device tree. Clobbers x0-x15; in: x20 = device tree.
build_tables:
    mov     x15, x30
    adrp    x14, _start                     // physical address of the image; the linked one is _image_start

    // upper half: level 1 [510] -> level 2 -> level 3 tables, one after another
    adrp    x0, boot_l1
    adrp    x1, boot_l2
    orr     x2, x1, #PAGE_TABLE
    str     x2, [x0, #(510 * 8)]
    adrp    x3, boot_l3
    mov     x4, #0
1:  orr     x2, x3, #PAGE_TABLE
    str     x2, [x1, x4, lsl #3]
    add     x3, x3, #4096
    add     x4, x4, #1
    cmp     x4, #16
    b.ne    1b

    // the image, page by page
    adrp    x0, _start
    adrp    x1, _text_end
    ldr     x2, =(MEM_RX | PAGE_TABLE)
    bl      map_image
    adrp    x0, _text_end
    adrp    x1, _rodata_end
    ldr     x2, =(MEM_RO | PAGE_TABLE)
    bl      map_image
    adrp    x0, _rodata_end
    adrp    x1, _image_end
    ldr     x2, =(MEM_RW | PAGE_TABLE)
    bl      map_image
    adrp    x0, _image_end                  // the blob that xtask appended, up to the header's image_size
    ldr     x1, [x14, #16]
    add     x1, x1, x14
    add     x1, x1, #4095
    and     x1, x1, #~4095
    ldr     x2, =(MEM_RO | PAGE_TABLE)
    bl      map_image

    // the device tree: 4 MiB from the 2 MiB block it begins in, read-only
    adrp    x0, boot_l2
    and     x1, x20, #~0x1fffff
    and     x1, x1, #0x0000ffffffffffff
    ldr     x2, =(MEM_RO | BLOCK)
    orr     x2, x2, x1
    str     x2, [x0, #(384 * 8)]
    add     x2, x2, #0x200000
    str     x2, [x0, #(385 * 8)]

    // lower half: the 2 MiB block(s) that hold the boot code, at its physical address
    adrp    x0, boot_id_l1
    adrp    x1, boot_id_l2
    orr     x2, x1, #PAGE_TABLE
    lsr     x3, x14, #30
    and     x3, x3, #511
    str     x2, [x0, x3, lsl #3]
    adrp    x4, boot_id_l2b                 // the image may begin in the last block of a GiB
    orr     x2, x4, #PAGE_TABLE
    add     x3, x3, #1
    and     x3, x3, #511
    str     x2, [x0, x3, lsl #3]
    ubfx    x3, x14, #21, #9
    and     x5, x14, #~0x1fffff
    ldr     x2, =(MEM_RX | BLOCK)
    orr     x2, x2, x5
    str     x2, [x1, x3, lsl #3]            // boot_id_l2 and boot_id_l2b are adjacent: entry 512 is the next GiB's first
    add     x2, x2, #0x200000
    add     x3, x3, #1
    str     x2, [x1, x3, lsl #3]

    // The stores above went past the data cache (MMU off: Device or Non-cacheable). Lines that the firmware or
    // speculation left for these addresses would hide them once the cache is on: invalidate them, for the
    // walker reads through the cache (Arm ARM B2.8 / D7, "cache maintenance and non-cacheable writes").
    dmb     sy
    adrp    x0, boot_tables
    adrp    x1, boot_tables_end
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4
    mov     x3, #4
    lsl     x3, x3, x2                      // smallest data cache line in bytes
2:  dc      ivac, x0
    add     x0, x0, x3
    cmp     x0, x1
    b.lo    2b
    dsb     sy
    ret     x15

// Level 3 entries for the physical range x0..x1 with attributes x2. In: x14 = physical image start. Clobbers x3-x5.
map_image:
    adrp    x3, boot_l3
    sub     x4, x0, x14
    lsr     x4, x4, #12
1:  cmp     x0, x1
    b.hs    2f
    orr     x5, x2, x0
    str     x5, [x3, x4, lsl #3]
    add     x0, x0, #4096
    add     x4, x4, #1
    b       1b
2:  ret

// Turns the MMU on with the tables above. Clobbers x8-x11.
mmu_on:
    ldr     x8, =MAIR
    msr     mair_el1, x8
    ldr     x8, =TCR
    mrs     x9, id_aa64mmfr0_el1            // IPS = PARange, at most 48 bits
    and     x9, x9, #0xf
    mov     x10, #5
    cmp     x9, x10
    csel    x9, x9, x10, lo
    orr     x8, x8, x9, lsl #32
    msr     tcr_el1, x8
    adrp    x8, boot_id_l1
    msr     ttbr0_el1, x8
    adrp    x8, boot_l1
    msr     ttbr1_el1, x8
    msr     cpacr_el1, xzr                  // FP and SIMD trap: a slip shows
    mov     x8, #0                          // MDSCR_EL1: no debug state left over from firmware
    msr     mdscr_el1, x8
    isb
    tlbi    vmalle1
    dsb     nsh
    ic      iallu
    dsb     nsh
    isb
    ldr     x8, =SCTLR_ON
    msr     sctlr_el1, x8
    isb
    ret

// Gives up the lower half: what boot.s mapped there is executable memory beside the image, and on a Pi address 0.
// The tables stay for the cores that come later. EPD0 may be cached in a TLB, hence the TLBI (Arm ARM, TCR_EL1).
.macro drop_lower_half
    mrs     x8, tcr_el1
    orr     x8, x8, #(1 << 7)               // EPD0: no walks by TTBR0_EL1
    msr     tcr_el1, x8
    isb
    tlbi    vmalle1
    dsb     nsh
    isb
.endm

// From here on at linked addresses.
primary_upper:
    drop_lower_half
    ldr     x8, =vectors
    msr     vbar_el1, x8
    ldr     x8, =boot_stack_top
    mov     sp, x8
    mov     x29, xzr
    mov     x30, xzr
    msr     tpidr_el1, xzr
    ldr     x8, =BOOT_TASK                  // a task from the first instruction on: sp_el0 is never stale
    msr     sp_el0, x8
    isb
    mov     x0, x20                         // device tree, physical
    adrp    x1, _start                      // where the image lies: the translation of its own first page
    at      s1e1r, x1
    isb
    mrs     x1, par_el1
    and     x1, x1, #0x0000fffffffff000
    bl      springboard_main
    b       .

secondary_upper:
    drop_lower_half
    ldr     x8, =vectors
    msr     vbar_el1, x8
    ldr     x9, =SECONDARY_BOOT             // { stack top, task, per-CPU block }: written by the core that waits for us
    ldp     x10, x11, [x9]
    ldr     x12, [x9, #16]
    mov     sp, x10
    msr     sp_el0, x11
    msr     tpidr_el1, x12
    isb
    mov     x29, xzr
    mov     x30, xzr
    bl      springboard_secondary
    b       .

.section .bss.boot, "aw", %nobits
.balign 4096
boot_tables:
.global boot_l1
boot_l1:        .space 4096
.global boot_l2
boot_l2:        .space 4096
.global boot_l3
boot_l3:        .space 4096 * 16
boot_id_l1:     .space 4096
boot_id_l2:     .space 4096
boot_id_l2b:    .space 4096
boot_tables_end:

// In use until the boot core's first task has a stack of its own. Upper half of a 512 KiB slot, as every stack.
.balign 524288
                .space 262144
boot_stack_guard:
                .space 262144
boot_stack_top:
