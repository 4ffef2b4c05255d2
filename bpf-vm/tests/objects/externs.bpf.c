// SPDX-License-Identifier: MIT OR Apache-2.0
/* What a kernel defines: functions, variables, settings, each strong and weak. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct clock {
	__u32 padding;
	__u32 ticks;
	__u64 base;
};

extern __u64 kernel_add(__u64 a, __u64 b) __ksym;
extern __u64 kernel_gone(__u64 a) __ksym __weak;
extern const struct clock kernel_clock __ksym;
extern const struct clock kernel_old_clock __ksym __weak;
extern const void kernel_start __ksym;
extern const void kernel_gone_start __ksym __weak;

extern int LINUX_KERNEL_VERSION __kconfig;
extern _Bool CONFIG_BOOL __kconfig;
extern _Bool CONFIG_GONE __kconfig __weak;
extern enum libbpf_tristate CONFIG_TRISTATE __kconfig;
extern char CONFIG_CHAR __kconfig;
extern __u64 CONFIG_LARGE __kconfig;
extern const char CONFIG_STRING[8] __kconfig;

SEC("fentry/workload_call")
__u64 BPF_PROG(functions, __u64 first, __u64 second)
{
	__u64 sum = kernel_add(first, second);

	if (kernel_gone)
		sum = kernel_gone(sum);
	return kernel_add(sum, 1000);
}

SEC("fentry/workload_call")
__u64 BPF_PROG(variables)
{
	__u64 sum = kernel_clock.ticks + kernel_clock.base;

	if (&kernel_old_clock)
		sum += kernel_old_clock.ticks;
	return sum;
}

SEC("fentry/workload_call")
__u64 BPF_PROG(addresses)
{
	if (&kernel_gone_start)
		return (__u64)&kernel_gone_start;
	return (__u64)&kernel_start;
}

SEC("fentry/workload_call")
__u64 BPF_PROG(settings, __u64 which)
{
	switch (which) {
	case 0:
		return LINUX_KERNEL_VERSION;
	case 1:
		return CONFIG_BOOL;
	case 2:
		return CONFIG_GONE;
	case 3:
		return CONFIG_TRISTATE;
	case 4:
		return CONFIG_CHAR;
	case 5:
		return CONFIG_LARGE;
	case 6:
		return CONFIG_STRING[0] + 256 * CONFIG_STRING[2] + CONFIG_STRING[7];
	}
	return -1;
}

/* A setting that is off leads past a function that is not there. */
SEC("fentry/workload_call")
__u64 BPF_PROG(guarded, __u64 first)
{
	if (CONFIG_GONE)
		return kernel_gone(first);
	return first;
}
