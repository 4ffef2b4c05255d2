// SPDX-License-Identifier: MIT OR Apache-2.0
/* Wants to know a setting that no kernel has: loading names it. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int CONFIG_NO_SUCH_SETTING __kconfig;

SEC("fentry/workload_call")
int missing_setting(void *ctx)
{
	return CONFIG_NO_SUCH_SETTING;
}
