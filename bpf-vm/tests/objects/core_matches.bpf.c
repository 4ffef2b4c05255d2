// SPDX-License-Identifier: MIT OR Apache-2.0
/* Flavours of core_kernel.bpf.c's types: programs called same... are about one that has no more than there is. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define PROGRAM(name, type)                  \
	SEC("fentry/workload_call")          \
	int name(void *ctx)                  \
	{                                    \
		return bpf_core_type_exists(type); \
	}

struct inner___fewer {
	unsigned short y;
};

struct inner___unordered {
	unsigned int x;
	unsigned long before;
};

struct inner___larger {
	unsigned int y;
};

struct inner___signed {
	short y;
};

struct inner___unknown {
	unsigned short z;
};

struct tailed___array {
	unsigned int y;
	unsigned char tail[];
};

struct tailed___longer {
	unsigned int y;
	unsigned char tail[4];
};

enum color___fewer { GREEN___fewer = 1, BLUE___fewer };
enum color___more { GREEN___more, GRAY___more };

/* Behind a pointer only the name counts. */
struct task;
struct task___pointers {
	void *pointer;
};
struct task___wrong_pointer {
	int *pointer;
};
struct task___nested {
	struct inner___fewer in;
};
struct task___wrong_nested {
	struct inner___unknown in;
};

PROGRAM(same_fewer, struct inner___fewer)
PROGRAM(same_unordered, struct inner___unordered)
PROGRAM(larger, struct inner___larger)
PROGRAM(other_sign, struct inner___signed)
PROGRAM(unknown, struct inner___unknown)
PROGRAM(same_array, struct tailed___array)
PROGRAM(longer_array, struct tailed___longer)
PROGRAM(same_enumerators, enum color___fewer)
PROGRAM(more_enumerators, enum color___more)
PROGRAM(same_pointer, struct task___pointers)
PROGRAM(wrong_pointer, struct task___wrong_pointer)
PROGRAM(same_nested, struct task___nested)
PROGRAM(wrong_nested, struct task___wrong_nested)
