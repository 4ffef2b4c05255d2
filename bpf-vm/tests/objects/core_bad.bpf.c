// SPDX-License-Identifier: MIT OR Apache-2.0
/* What core_kernel.bpf.c and core_twins.bpf.c do not have, have in a way that cannot be accessed, or have twice. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

enum color { VIOLET };

struct task {
	int gone;
	/* Signed, and another size there. */
	long priority;
};

struct task___nested {
	struct {
		struct {
			int missing;
		} deep[2];
	} in;
};

struct twin {
	int x;
};

#pragma clang attribute pop

SEC("fentry/workload_call")
long no_field(struct task *t)
{
	return t->gone;
}

SEC("fentry/workload_call")
long no_nested_field(struct task___nested *t)
{
	return t->in.deep[1].missing;
}

SEC("fentry/workload_call")
long no_enumerator(void *t)
{
	return bpf_core_enum_value(enum color, VIOLET);
}

SEC("fentry/workload_call")
long other_size(struct task *t)
{
	return t->priority;
}

SEC("fentry/workload_call")
long two(struct twin *t)
{
	/* A size is asked about only where it is there. */
	return bpf_core_type_exists(struct twin) ? t->x : 0;
}
