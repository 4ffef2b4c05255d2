// SPDX-License-Identifier: MIT OR Apache-2.0
/* One type as several kernels have it, told apart by what is there; core_kernel.bpf.c says what is to come out. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct task {
	unsigned long gone;
};

/* Flavours: what is there in one kernel and not in the other. */
struct task___old {
	unsigned int old_field;
};

struct task___new {
	unsigned int alone;
};

struct gone {
	int x;
};

#pragma clang attribute pop

/* What the branch leads past is nothing that this kernel has. */
SEC("fentry/workload_call")
unsigned long choose(struct task *t)
{
	struct task___old *old = (void *)t;
	struct task___new *new = (void *)t;

	if (bpf_core_field_exists(old->old_field))
		return old->old_field + bpf_core_type_size(struct gone);
	if (bpf_core_field_exists(new->alone))
		return new->alone;
	return t->gone;
}
