// SPDX-License-Identifier: MIT OR Apache-2.0
/* Jump tables, which clang 22 makes with -mcpu=v4: of a `switch` with many cases in programs, in a static function and in
   a global one, and of labels as values. Each case computes something else, so that no table of results will do. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Not first in its section. */
static __noinline __u64 before(__u64 value)
{
	barrier_var(value);
	return value + 5;
}

/* Negative numbers, and a gap. */
static __noinline __u64 sparse(__s64 which, __u64 value)
{
	switch (which) {
	case -9: return value * 3;
	case -8: return value + 1000;
	case -7: return value ^ 0x5555;
	case -6: return value << 3;
	case -5: return value >> 5;
	case -4: return value - 77;
	case -3: return value | 0xf0;
	case -2: return value & 0xff00ff;
	case -1: return value / 7;
	case 0: return value % 13;
	case 1: return ~value;
	case 2: return -value;
	case 3: return value * value;
	case 9: return value * 5 + 1;
	case 10: return value * 9 - 2;
	case 11: return value ^ (value >> 7);
	case 12: return value ^ (value << 9);
	case 13: return (value | 1) * 11;
	case 14: return (value & 0xffff) + 12;
	case 15: return value - (value >> 2);
	case 100: return value + 3;
	case 5000: return value + 4;
	case -1000000: return value + 6;
	case 0x123456789aULL: return value + 7;
	}
	return value + 1;
}

/* A table inside of a table's case, and cases that go on to the next one. */
__noinline __u64 nested(__u64 which, __u64 value)
{
	switch (which % 24) {
	case 0: value *= 3;
	case 1: value += 9; break;
	case 2: value ^= 0x1234;
	case 3: value -= 5; break;
	case 4: return value * 77;
	case 5: return value / 3;
	case 6: value <<= 2; break;
	case 7: value >>= 3; break;
	case 8: value |= 0x8000; break;
	case 9: value &= 0x7fffff; break;
	case 10: value = ~value; break;
	case 11: value = -value; break;
	case 12: value *= 13; break;
	case 13: value += before(which); break;
	case 14: value += bpf_get_current_pid_tgid() * 0; break;
	case 15:
		switch (which % 20) {
		case 15: return value * 2;
		case 16: return value * 3 + 1;
		case 17: return value ^ 3;
		case 18: return value | 5;
		case 19: return value - 9;
		case 0: return value / 5;
		case 1: return value % 7;
		case 2: return value << 1;
		case 3: return value >> 1;
		case 4: return value & 0xfff;
		case 5: return ~value;
		case 6: return -value;
		case 7: return value * 31;
		case 8: return value * 33;
		case 9: return value * 35 + 2;
		case 10: return value + 0x100;
		case 11: return value ^ 0x100;
		}
		break;
	case 16: value += 100; break;
	case 17: value -= 100; break;
	case 18: value *= 101; break;
	case 20: value ^= value >> 3; break;
	case 21: value ^= value << 3; break;
	case 22: value = value * 5 + which; break;
	}
	return value + 2;
}

#if __clang_major__ >= 22 && __BPF_CPU_VERSION__ >= 4
#define LABELS 1
#endif

/* The same with labels as values and with a switch: in a constant, and put together on the stack. */
static __noinline __u64 machine(__u64 code, __u64 value)
{
#ifdef LABELS
	static const void *const table[] = { &&add, &&mul, &&xor, &&neg, &&end, &&sub };
#define NEXT goto *table[code % 6]
#define IS(name, number) name
#else
#define NEXT goto next
#define IS(name, number) case number
#endif
	int steps = 0;

	NEXT;
#ifndef LABELS
next:
	switch (code % 6) {
#endif
IS(add, 0):
	value += 7;
	code /= 6;
	if (++steps > 20)
		return value;
	NEXT;
IS(mul, 1):
	value *= 5;
	code /= 6;
	if (++steps > 19)
		return value + 1;
	NEXT;
IS(xor, 2):
	value ^= 0x77;
	code /= 6;
	if (++steps > 18)
		return value + 2;
	NEXT;
IS(neg, 3):
	value = -value;
	code /= 6;
	if (++steps > 17)
		return value + 3;
	NEXT;
IS(sub, 5):
	value -= 3;
	code /= 6;
	if (++steps > 16)
		return value + 4;
	NEXT;
IS(end, 4):
	return value;
#ifndef LABELS
	}
	return 0;
#endif
}

static __noinline __u64 chosen(__u64 which, __u64 value)
{
#ifdef LABELS
	void *table[3] = { &&one, &&two, &&three };

	if (which > 4)
		table[which % 3] = &&two;
	goto *table[which % 3];
one:
	value += 11;
two:
	value *= 3;
three:
	return value + 1;
#else
	if (which > 4)
		return value * 3 + 1;
	if (which % 3 == 0)
		value += 11;
	if (which % 3 < 2)
		value *= 3;
	return value + 1;
#endif
}

SEC("fentry/workload_call")
__u64 BPF_PROG(by_static, __u64 first, __u64 second)
{
	__u64 sum = second;

	for (__s64 which = -12; which < 20; which++) {
		barrier_var(which);
		sum = sum * 31 + sparse(which, sum + first);
	}
	sum = sum * 31 + sparse(100, sum);
	sum = sum * 31 + sparse(5000, sum);
	sum = sum * 31 + sparse(-1000000, sum);
	return sum * 31 + sparse(0x123456789aULL, sum) + sparse(~0ULL >> 1, sum);
}

SEC("fentry/workload_call")
__u64 BPF_PROG(by_global, __u64 first, __u64 second)
{
	__u64 sum = second;

	for (__u64 which = 0; which < 130; which++) {
		barrier_var(which);
		sum = sum * 31 + nested(which, sum + first);
	}
	return sum;
}

/* A switch of its own, and the functions' of the others. */
SEC("fentry/workload_call")
__u64 BPF_PROG(itself, __u64 first, __u64 second, __u64 third)
{
	switch ((__s64)first - 3) {
	case -3: return third * 3;
	case -2: return third + sparse(-9, third);
	case -1: return third ^ nested(15, third);
	case 0: return third % 1001;
	case 1: return third / 3;
	case 2: return second - third;
	case 3: return second * third;
	case 4: return second + third;
	case 5: return second | third;
	case 6: return second & third;
	case 7: return second << 3;
	case 8: return third << 5;
	case 9: return second + 9;
	case 10: return second + 19;
	case 11: return second * 29;
	case 12: return second * 39;
	case 13: return second ^ 49;
	case 14: return second ^ 59;
	case 15: return second - 69;
	case 16: return second - 79;
	case 17: return second % 89;
	}
	return 1;
}

SEC("fentry/workload_call")
__u64 BPF_PROG(by_labels, __u64 first, __u64 second, __u64 third)
{
	__u64 sum = machine(third, second);

	for (__u64 which = 0; which < 9; which++) {
		barrier_var(which);
		sum = sum * 31 + machine(third * which + first, sum) + chosen(which, sum);
	}
	return sum;
}
