// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Exception entry and exit, and the context switch.
//
// The frame (struct Frame in trap.rs):
//   0    x0 .. x30
//   248  sp      256  elr     264  spsr    272  esr     280  far
//   288  recursion word of the interrupted context (asynchronous exceptions)
//   304  frame record: x29, elr (the unwinder walks through an exception as through a call)

.equ FRAME,     320
.equ F_SP,      248
.equ F_ELR,     256
.equ F_SPSR,    264
.equ F_ESR,     272
.equ F_FAR,     280
.equ F_WORD,    288
.equ F_RECORD,  304
.equ TASK_WORD, 0

// A stack is the upper half of a 512 KiB slot whose lower half is unmapped, so bit 18 of an address tells whether
// it lies on the stack. The test must not use the stack, and no register is free: x0 waits in TPIDRRO_EL0,
// which nothing else uses, for there is no EL0.
.macro entry kind, handler, async
    .balign 128
    msr     tpidrro_el0, x0
    mov     x0, sp
    sub     x0, x0, #FRAME
    tbz     x0, #18, overflow_\kind
    mrs     x0, tpidrro_el0
    sub     sp, sp, #FRAME
    stp     x0, x1, [sp, #0]
    b       save_\kind
.endm

.macro save_all
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x0, elr_el1
    mrs     x1, spsr_el1
    mrs     x2, esr_el1
    mrs     x3, far_el1
    add     x4, sp, #FRAME
    stp     x30, x4, [sp, #240]
    stp     x0, x1, [sp, #F_ELR]
    stp     x2, x3, [sp, #F_ESR]
    stp     x29, x0, [sp, #F_RECORD]
    add     x29, sp, #F_RECORD
.endm

.macro body kind, handler, async
save_\kind:
    save_all
.if \async
    // An asynchronous exception is a context of its own: it starts with a fresh recursion word (DESIGN 6).
    mrs     x1, sp_el0
    ldr     x2, [x1, #TASK_WORD]
    str     x2, [sp, #F_WORD]
    str     xzr, [x1, #TASK_WORD]
.endif
    mov     x0, sp
    bl      \handler
.if \async
    msr     daifset, #0xf
    mrs     x1, sp_el0
    ldr     x2, [sp, #F_WORD]
    str     x2, [x1, #TASK_WORD]
.endif
    b       exception_exit
.endm

.macro overflow kind, code
overflow_\kind:
    mov     x0, #\code
    b       stack_overflow
.endm

.section .text.vectors, "ax"
.balign 2048
.global vectors
vectors:
    // from EL1 with SP_EL0: never used
    .rept 4
    .balign 128
    b       unexpected
    .endr
    entry   sync, trap_sync, 0
    entry   irq, trap_irq, 1
    entry   fiq, trap_fiq, 1
    entry   serror, trap_serror, 1
    // from EL0: there is none
    .rept 8
    .balign 128
    b       unexpected
    .endr

    body    sync, trap_sync, 0
    body    irq, trap_irq, 1
    body    fiq, trap_fiq, 1
    body    serror, trap_serror, 1
    overflow sync, 0
    overflow irq, 1
    overflow fiq, 2
    overflow serror, 3

.global exception_exit
exception_exit:
    msr     daifset, #0xf
    ldp     x0, x1, [sp, #F_ELR]
    msr     elr_el1, x0
    msr     spsr_el1, x1
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp, #0]
    add     sp, sp, #FRAME
    eret

// The broken stack is not touched: the frame goes to this core's overflow stack, with the old sp in it.
// Per-CPU block: [0] = top of the overflow stack. Before the block or its stack is there the boot stack's own top must do.
stack_overflow:
    msr     tpidr_el0, x0                   // which vector; TPIDR_EL0 is as free as TPIDRRO_EL0
    mrs     x0, tpidr_el1
    cbz     x0, 1f
    ldr     x0, [x0]
    cbnz    x0, 2f
1:  ldr     x0, =boot_stack_top
2:  sub     x0, x0, #FRAME
    str     x1, [x0, #8]
    mov     x1, sp
    mov     sp, x0
    str     x1, [sp, #F_WORD]               // the broken sp, for a moment in the word's place
    mrs     x0, tpidrro_el0
    str     x0, [sp]
    save_all
    ldr     x1, [sp, #F_WORD]
    str     x1, [sp, #F_SP]
    mov     x0, sp
    mrs     x1, tpidr_el0
    bl      trap_overflow
    b       .

unexpected:
    sub     sp, sp, #FRAME
    stp     x0, x1, [sp, #0]
    save_all
    mov     x0, sp
    bl      trap_unexpected
    b       .

// switch_stacks(prev_sp: *mut usize, next_sp: usize, next_task: *const Task)
// Saves what a call preserves, changes the stack and `current`; returns on the next task's stack.
.global switch_stacks
switch_stacks:
    stp     x29, x30, [sp, #-96]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    mov     x9, sp
    str     x9, [x0]
    mov     sp, x1
    msr     sp_el0, x2
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #96
    ret

// A new task's first return address. x19 = its entry record (sched.rs).
.global task_start
task_start:
    mov     x0, x19
    bl      task_main
    b       .

// jump_to_stack(sp, function): leaves the present stack for good
.global jump_to_stack
jump_to_stack:
    mov     sp, x0
    mov     x29, xzr
    mov     x30, xzr
    br      x1
