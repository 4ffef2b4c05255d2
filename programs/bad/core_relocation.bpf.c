// SPDX-License-Identifier: MIT OR Apache-2.0
/* Reads a field by CO-RE of a type that no kernel has: loading names section, offset, type and field. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct somewhere {
	int field;
} __attribute__((preserve_access_index));

SEC("fentry/workload_call")
int core_relocation(struct somewhere *ctx)
{
	return ctx->field;
}
