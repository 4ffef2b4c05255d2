// SPDX-License-Identifier: MIT OR Apache-2.0
/* Has a function but no section that says what it attaches to. */
int no_program(void *ctx)
{
	return 0;
}
