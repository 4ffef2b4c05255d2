// SPDX-License-Identifier: MIT OR Apache-2.0
/* The kernel's side of core.bpf.c: its types, and what each program there has to return. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define PROGRAM(name, value)                                  \
	SEC("fentry/workload_call")                           \
	unsigned long name(struct task *t)                    \
	{                                                     \
		return (unsigned long)(value);                \
	}

enum color { BLUE = 5, RED, GREEN };

struct inner {
	unsigned long before;
	unsigned short y;
	unsigned int x;
};

struct tailed {
	unsigned int y;
	unsigned char tail[];
};

struct task {
	int was_pointer_before[3];
	/* Smaller than in the object, and unsigned there too. */
	unsigned int id;
	struct {
		union {
			unsigned long other;
			struct {
				int pad;
				unsigned int alone;
			};
		};
		unsigned long shared;
	};
	short small;
	int priority;
	enum color color;
	char name[32];
	unsigned int before : 9, state : 6;
	long long level : 5;
	unsigned int flags : 11;
	void *pointer;
	unsigned int grid[4][8];
	struct inner list[4];
	void *was_pointer;
	struct inner in;
	struct tailed end;
};

typedef struct inner inner_t;
typedef int (*callback_t)(struct task *, int);

/* So that the types are in the BTF. */
struct task one;
inner_t two;
callback_t three;

PROGRAM(read_id, t->id)
PROGRAM(read_nested, t->in.x + 3 * t->in.y)
PROGRAM(read_name, t->name[3] | t->name[15] << 8)
PROGRAM(read_signed, t->priority + t->small)
PROGRAM(read_in_anonymous, t->alone ^ t->shared)
PROGRAM(read_enum, t->color)
PROGRAM(read_pointer, t->pointer)
PROGRAM(read_grid, t->grid[2][3] - t->grid[1][0])
PROGRAM(read_list, t->list[2].y)
PROGRAM(read_flexible, t->end.tail[5])
PROGRAM(read_second, t[1].id)
PROGRAM(read_flags, t->flags)
PROGRAM(read_state, t->state)
PROGRAM(read_level, (long)t->level)

PROGRAM(offset_of_list, (unsigned long)&((struct task *)0)->list[1].x)
PROGRAM(size_of_id, sizeof(t->id))
PROGRAM(size_of_name, sizeof(t->name))
PROGRAM(signed_priority, 1)
PROGRAM(unsigned_id, 0)
PROGRAM(exists, 1 + 4 + 16)
PROGRAM(type_exists, 1 + 4 + 8)
PROGRAM(type_size, sizeof(struct task))
PROGRAM(enum_exists, 1)
PROGRAM(enum_value, GREEN)
PROGRAM(choose, t->alone)
PROGRAM(by_probe, t->in.x + (unsigned long)t->level)
