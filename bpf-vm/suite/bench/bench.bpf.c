// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * The programs that engines are measured by. Each gets the memory's address and size and returns a number; the texts
 * beside this file are what clang made of it: `clang -target bpf -g -O2 -mcpu=v3 -fno-builtin`, one file a program.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define NOINLINE static __attribute__((noinline))

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Eratosthenes: how many primes there are below the memory's size. */
SEC("bench/sieve")
u64 sieve(u8 *memory, u64 size)
{
	u64 count = 0;

	for (u64 i = 0; i < size; i++)
		memory[i] = 1;
	for (u64 i = 2; i < size; i++) {
		if (!memory[i])
			continue;
		count++;
		for (u64 j = i * i; j < size; j += i)
			memory[j] = 0;
	}
	return count;
}

/* The Internet checksum (RFC 1071). */
SEC("bench/checksum")
u64 checksum(u8 *memory, u64 size)
{
	u16 *words = (u16 *)memory;
	u64 sum = 0;

#pragma clang loop unroll(disable)
	for (u64 i = 0; i < size / 2; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum & 0xffff;
}

/* FNV-1a over bytes, then a final mix of 32-bit multiplications and shifts as in MurmurHash3. */
SEC("bench/hash")
u64 hash(u8 *memory, u64 size)
{
	u32 a = 2166136261u, b = (u32)size;

#pragma clang loop unroll(disable)
	for (u64 i = 0; i + 4 <= size; i += 4) {
		u32 k = *(u32 *)(memory + i);

		k *= 0xcc9e2d51;
		k = k << 15 | k >> 17;
		k *= 0x1b873593;
		b ^= k;
		b = b << 13 | b >> 19;
		b = b * 5 + 0xe6546b64;
		a = (a ^ (u8)k) * 16777619u;
	}
	b ^= b >> 16;
	b *= 0x85ebca6b;
	b ^= b >> 13;
	b *= 0xc2b2ae35;
	b ^= b >> 16;
	return (u64)a << 32 | b;
}

/* Insertion sort of 32-bit numbers; the sum of each times its place. */
SEC("bench/sort")
u64 sort(u32 *numbers, u64 size)
{
	u64 count = size / 4, sum = 0;

	for (u64 i = 1; i < count; i++) {
		u32 value = numbers[i];
		u64 j = i;

		for (; j > 0 && numbers[j - 1] > value; j--)
			numbers[j] = numbers[j - 1];
		numbers[j] = value;
	}
#pragma clang loop unroll(disable)
	for (u64 i = 0; i < count; i++)
		sum += numbers[i] * i;
	return sum;
}

/* Splits text into words, numbers and signs, and counts and weighs them. */
SEC("bench/parser")
u64 parser(u8 *text, u64 size)
{
	u64 words = 0, numbers = 0, signs = 0, value = 0, total = 0;
	u32 state = 0;

#pragma clang loop unroll(disable)
	for (u64 i = 0; i < size; i++) {
		u8 c = text[i];

		if (c >= '0' && c <= '9') {
			if (state != 1) {
				numbers++;
				value = 0;
			}
			state = 1;
			value = value * 10 + (c - '0');
			continue;
		}
		if (state == 1)
			total += value;
		if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_') {
			if (state != 2)
				words++;
			state = 2;
		} else if (c == ' ' || c == '\n' || c == '\t') {
			state = 0;
		} else {
			signs++;
			state = 3;
		}
	}
	if (state == 1)
		total += value;
	return words << 48 | numbers << 32 | signs << 16 | (total & 0xffff);
}

NOINLINE u64 gcd(u64 a, u64 b)
{
	while (b) {
		u64 rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}

NOINLINE u64 weigh(u64 value, u64 place)
{
	return gcd(value, place + 1) * place;
}

/* Small functions called in a loop, two deep. */
SEC("bench/calls")
u64 calls(u8 *memory, u64 size)
{
	u64 sum = 0;

#pragma clang loop unroll(disable)
	for (u64 i = 0; i < size; i++)
		sum += weigh(memory[i], i & 15);
	return sum;
}

/* Counters and flags that other cores could touch: additions, exchanges, comparisons. */
SEC("bench/atomics")
u64 atomics(u64 *words, u64 size)
{
	u64 count = size / 8, old = 0;

#pragma clang loop unroll(disable)
	for (u64 round = 0; round < 16; round++) {
#pragma clang loop unroll(disable)
		for (u64 i = 0; i + 1 < count; i += 2) {
			__sync_fetch_and_add(&words[i], round);
			old += __sync_fetch_and_add(&words[i + 1], i);
			old ^= __sync_lock_test_and_set(&words[i], old);
			__sync_val_compare_and_swap(&words[i + 1], old, round);
			__sync_fetch_and_or(&words[i], 1);
		}
	}
	return old;
}
