// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Asks by CO-RE about types that are otherwise in core_kernel.bpf.c, which has a program of the same name for each one
 * here, compiled against its own types: on the same memory both have to return the same.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define PROGRAM(name, value)                                  \
	SEC("fentry/workload_call")                           \
	unsigned long name(struct task *t)                    \
	{                                                     \
		return (unsigned long)(value);                \
	}

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

enum color { RED = 1, GREEN, VIOLET };
enum wide { WIDE_LOW = 0x1, WIDE_HIGH = 0x7fffffff00000000ULL };

struct inner {
	unsigned int x;
	unsigned short y;
};

struct tailed {
	unsigned char y;
	unsigned char tail[];
};

struct task {
	unsigned long id;
	struct inner in;
	char name[16];
	int priority;
	short small;
	unsigned int flags : 3, state : 5;
	long long level : 7;
	unsigned int alone;
	unsigned long shared;
	enum color color;
	void *pointer;
	unsigned int grid[4][4];
	struct inner list[3];
	int gone;
	int was_pointer;
	struct tailed end;
};

struct gone {
	int x;
};

typedef struct inner inner_t;
typedef int (*callback_t)(struct task *, int);

#pragma clang attribute pop

PROGRAM(read_id, t->id)
PROGRAM(read_nested, t->in.x + 3 * t->in.y)
PROGRAM(read_name, t->name[3] | t->name[15] << 8)
PROGRAM(read_signed, t->priority + t->small)
PROGRAM(read_in_anonymous, t->alone ^ t->shared)
PROGRAM(read_enum, t->color)
PROGRAM(read_pointer, t->pointer)
PROGRAM(read_grid, t->grid[2][3] - t->grid[1][0])
PROGRAM(read_list, t->list[2].y)
PROGRAM(read_flexible, t->end.tail[5])
PROGRAM(read_second, t[1].id)
PROGRAM(read_flags, BPF_CORE_READ_BITFIELD(t, flags))
PROGRAM(read_state, BPF_CORE_READ_BITFIELD(t, state))
PROGRAM(read_level, BPF_CORE_READ_BITFIELD(t, level))

PROGRAM(offset_of_list, bpf_core_field_offset(t->list[1].x))
PROGRAM(size_of_id, bpf_core_field_size(t->id))
PROGRAM(size_of_name, bpf_core_field_size(t->name))
PROGRAM(signed_priority, __builtin_preserve_field_info(t->priority, BPF_FIELD_SIGNED))
PROGRAM(unsigned_id, __builtin_preserve_field_info(t->id, BPF_FIELD_SIGNED))
PROGRAM(exists, bpf_core_field_exists(t->id) + 2 * bpf_core_field_exists(t->gone) +
		4 * bpf_core_field_exists(t->in.y) + 8 * bpf_core_field_exists(t->was_pointer) +
		16 * bpf_core_field_exists(t->grid[3][3]))

PROGRAM(type_exists, bpf_core_type_exists(struct task) + 2 * bpf_core_type_exists(struct gone) +
		4 * bpf_core_type_exists(inner_t) + 8 * bpf_core_type_exists(callback_t))
PROGRAM(type_size, bpf_core_type_size(struct task))
PROGRAM(enum_exists, bpf_core_enum_value_exists(enum color, GREEN) +
		2 * bpf_core_enum_value_exists(enum color, VIOLET))
PROGRAM(enum_value, bpf_core_enum_value(enum color, GREEN))

SEC("fentry/workload_call")
unsigned long local_id(struct task *t)
{
	return bpf_core_type_id_local(struct task);
}

SEC("fentry/workload_call")
unsigned long kernel_id(struct task *t)
{
	return bpf_core_type_id_kernel(struct task);
}

/* By a helper, as programs read what they are not trusted to. */
SEC("fentry/workload_call")
unsigned long by_probe(struct task *t)
{
	return BPF_CORE_READ(t, in.x) + (unsigned long)BPF_CORE_READ_BITFIELD_PROBED(t, level);
}
