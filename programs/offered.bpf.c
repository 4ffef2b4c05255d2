// SPDX-License-Identifier: MIT OR Apache-2.0
/* Uses what the kernel has by name: functions, a variable read by CO-RE, its configuration, a map that objects share. */
#include "springboard.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct KernelInfo;

/* Only what is needed of it, in any order; the loader finds it in the kernel's types by the name before the underscores. */
struct KernelInfo___needed {
	__u64 hertz;
	__u64 cores;
	__u32 not_there;
} __attribute__((preserve_access_index));

extern __u64 springboard_task_id(void) __ksym;
extern __s64 springboard_checksum(const __u8 *bytes, __u64 size, __u64 sum) __ksym;
extern __u64 springboard_of_tomorrow(__u64 wish) __ksym __weak;
extern const struct KernelInfo springboard_info __ksym;
extern int CONFIG_HZ __kconfig;
extern _Bool CONFIG_SPRINGBOARD_OF_TOMORROW __kconfig __weak;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} shared_calls SEC(".maps");

__u64 task, cores, hertz, configured, missing;
/* Of eight bytes on the stack, in one call and in two; of more than the function takes. */
__s64 sum, sum_of_parts, sum_of_too_many;
__u8 many[5000];

SEC("fentry/workload_call")
int BPF_PROG(offered)
{
	const struct KernelInfo___needed *info = (const void *)&springboard_info;
	__u32 key = 0;
	__u64 *calls = bpf_map_lookup_elem(&shared_calls, &key);

	if (calls)
		*calls += 1;
	__u8 bytes[8] = {0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7};

	sum = springboard_checksum(bytes, sizeof(bytes), 0);
	sum_of_parts = springboard_checksum(bytes + 2, 6, springboard_checksum(bytes, 2, 0));
	sum_of_too_many = springboard_checksum(many, sizeof(many), 0);
	task = springboard_task_id();
	hertz = info->hertz;
	cores = info->cores;
	configured = CONFIG_HZ;
	if (bpf_core_field_exists(info->not_there))
		missing += info->not_there;
	if (springboard_of_tomorrow)
		missing += springboard_of_tomorrow(1);
	if (CONFIG_SPRINGBOARD_OF_TOMORROW)
		missing += 1;
	return 0;
}
