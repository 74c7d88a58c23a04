/*
 * @WHAT@
 *
 * @WHERE@
 * Written by vmtape. To build it, put it into x86/ of kvm-unit-tests and its .flat among the tests of Makefile.x86_64.
 */
#include "libcflat.h"
#include "processor.h"

int main(void)
{
	struct cpuid r = cpuid_indexed(@FUNCTION@u, @INDEX@u);

	report(r.a == @EAX@u, "EAX 0x%x, expected @EAX@", r.a);
	report(r.b == @EBX@u, "EBX 0x%x, expected @EBX@", r.b);
	report(r.c == @ECX@u, "ECX 0x%x, expected @ECX@", r.c);
	report(r.d == @EDX@u, "EDX 0x%x, expected @EDX@", r.d);
	return report_summary();
}
