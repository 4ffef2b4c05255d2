// SPDX-License-Identifier: MIT OR Apache-2.0
/* A program that is static, which no loader could name. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("fentry/workload_call")
static __attribute__((used)) int static_program(void *ctx)
{
	return 0;
}
