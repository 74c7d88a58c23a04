/*
 * @WHAT@
 *
 * @WHERE@
 * Written by vmtape. To build it, put it into x86/ of kvm-unit-tests and its .flat among the tests of Makefile.x86_64.
 */
#include "libcflat.h"
#include "desc.h"
#include "processor.h"

#define INDEX	@INDEX@u
#define VALUE	@VALUE@ull

static const bool write = @WRITE@;
/* #GP, or none. */
static const int expected_vector = @VECTOR@;

int main(void)
{
	u64 value = VALUE;
	int vector = write ? wrmsr_safe(INDEX, value) : rdmsr_safe(INDEX, &value);

	report(vector == expected_vector, "vector 0x%x, expected 0x%x", vector, expected_vector);
	if (!write && !expected_vector)
		report(value == VALUE, "value 0x%lx, expected 0x%llx", value, VALUE);
	return report_summary();
}
