// SPDX-License-Identifier: MIT OR Apache-2.0
/* Says of each call who made it and where: function, cookie, arguments, task, core, stack. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__u64 function;
	__u64 cookie;
	__s64 arguments;
	__u64 second;
	__s64 beyond;
	__s64 returned;
	__u64 task;
	__u64 id;
	__u64 core;
	__s64 depth;
	__u64 stack[4];
	char name[16];
	char text[64];
} caller;

SEC("fentry/workload_call")
int BPF_PROG(who)
{
	__u64 value;

	caller.function = bpf_get_func_ip(ctx);
	caller.cookie = bpf_get_attach_cookie(ctx);
	caller.arguments = bpf_get_func_arg_cnt(ctx);
	if (bpf_get_func_arg(ctx, 1, &value) == 0)
		caller.second = value;
	caller.beyond = bpf_get_func_arg(ctx, 100, &value);
	caller.returned = bpf_get_func_ret(ctx, &value);
	caller.task = bpf_get_current_task();
	caller.id = bpf_get_current_pid_tgid();
	caller.core = bpf_get_smp_processor_id();
	bpf_get_current_comm(caller.name, sizeof(caller.name));
	caller.depth = bpf_get_stack(ctx, caller.stack, sizeof(caller.stack), 0);
	BPF_SNPRINTF(caller.text, sizeof(caller.text), "%ps by %s, core %d", caller.function, caller.name,
		     caller.core);
	return 0;
}
