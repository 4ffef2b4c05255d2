// SPDX-License-Identifier: MIT OR Apache-2.0
/* Programs in place of functions of rules.bpf.c. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

__u64 asked;

SEC("freplace/rule")
__u64 tenfold(__u64 value)
{
	asked += 1;
	return 10 * value;
}

/* Refused: it takes something else. */
SEC("freplace/rule")
int narrow(__u32 value)
{
	return value + 2;
}

/* Refused: a static function. */
SEC("freplace/fixed")
__u64 fixed_by(__u64 value)
{
	return value;
}

/* Refused: there is none. */
SEC("freplace/law")
__u64 law(__u64 value)
{
	return value;
}
