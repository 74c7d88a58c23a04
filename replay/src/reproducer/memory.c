/*
 * @WHAT@
 *
 * @WHERE@
 * Written by vmtape. To build it, put it into x86/ of kvm-unit-tests and its .flat among the tests of Makefile.x86_64.
 * To run it, give the guest @WIDTH@ physical address bits: -cpu max,phys-bits=@WIDTH@
 */
#include "libcflat.h"
#include "alloc_page.h"
#include "desc.h"
#include "processor.h"
#include "setjmp.h"
#include "usermode.h"
#include "vm.h"
#include "vmalloc.h"

#define GVA		@GVA@ul
#define GUEST_WIDTH	@WIDTH@
#define NO_VECTOR	0x100u
/* Frames that stand for the recorded ones: memory of this machine lies below 4 GiB. */
#define FRAME		0xfffff000ul

enum access { READ, WRITE, FETCH };

static const enum access access = @ACCESS@;
static const bool user = @USER@;
/* What the address leads to is no memory. */
static const bool device = @DEVICE@;
/* EFER.NX. */
static const bool nx = @NX@;
/* The guest's entries for the address, from the top, as they were before the access and after it. */
static const struct {
	int level;
	u64 entry;
	u64 after;
} walk[] = {
@WALK@};
/* Accessed and dirty bits are told. */
static const bool bits_told = @BITS@;
static u64 *entries[ARRAY_SIZE(walk)];
static const unsigned int expected_vector = @VECTOR@;
static const unsigned int expected_error = @ERROR@;

static jmp_buf before;
static volatile unsigned int vector = NO_VECTOR, error;

static void back(void)
{
	longjmp(before, 1);
}

static void page_fault(struct ex_regs *regs)
{
	vector = regs->vector;
	error = regs->error_code;
	/* The jump has to wait until the handler has returned. */
	regs->rip = (unsigned long)back;
	regs->cs = KERNEL_CS;
	regs->ss = KERNEL_DS;
}

static void *target(int level)
{
	u8 *page = level > 1 ? alloc_pages(9) : alloc_page();
	unsigned long offset = GVA & ((1ul << (12 + 9 * (level - 1))) - 1);

	/* RET, for fetches. */
	page[offset] = 0xc3;
	return page;
}

static void install(void)
{
	u64 *table = (u64 *)current_page_table();
	int i;

	for (i = 0; i < ARRAY_SIZE(walk); i++) {
		int shift = 12 + 9 * (walk[i].level - 1);
		bool leaf = i == ARRAY_SIZE(walk) - 1;
		u64 *next = leaf ? NULL : alloc_page();
		u64 entry = walk[i].entry;

		if (!leaf)
			entry = (entry & ~FRAME) | virt_to_phys(next);
		else if (!device && (entry & PT_PRESENT_MASK))
			entry = (entry & ~FRAME) | virt_to_phys(target(walk[i].level)) | (entry & FRAME & ~PAGE_MASK);
		entries[i] = &table[(GVA >> shift) & 511];
		*entries[i] = entry;
		table = next;
	}
	write_cr3(read_cr3());
}

static void check_entries(void)
{
	u64 bits = PT_ACCESSED_MASK;
	int i;

	for (i = 0; i < ARRAY_SIZE(walk); i++) {
		if (i == ARRAY_SIZE(walk) - 1)
			bits |= PT_DIRTY_MASK;
		report((*entries[i] & bits) == (walk[i].after & bits), "level %d: accessed and dirty 0x%lx, expected 0x%lx",
		       walk[i].level, *entries[i] & bits, walk[i].after & bits);
	}
}

static uint64_t touch(void)
{
	switch (access) {
	case READ:
		asm volatile("movb (%0), %%al" : : "r"(GVA) : "rax", "memory");
		break;
	case WRITE:
		asm volatile("movb %%al, (%0)" : : "r"(GVA), "a"(0xc3) : "memory");
		break;
	case FETCH:
		asm volatile("call *%0" : : "r"(GVA) : "memory");
		break;
	}
	return 0;
}

int main(void)
{
	bool raised;

	setup_vm();
	if (cpuid_maxphyaddr() != GUEST_WIDTH) {
		report_skip("the guest has %d physical address bits, the test needs %d", cpuid_maxphyaddr(), GUEST_WIDTH);
		return report_summary();
	}
	if (walk[0].level == 5)
		setup_5level_page_table();
	wrmsr(MSR_EFER, (rdmsr(MSR_EFER) & ~EFER_NX) | (nx ? EFER_NX : 0));
	install();
	handle_exception(PF_VECTOR, page_fault);
	if (setjmp(before) == 0) {
		if (user)
			run_in_user_ex(touch, PF_VECTOR, 0, 0, 0, 0, &raised, page_fault);
		else
			touch();
	}
	report(vector == expected_vector, "vector 0x%x, expected 0x%x (0x100: none)", vector, expected_vector);
	if (expected_vector != NO_VECTOR)
		report(error == expected_error, "error code 0x%x, expected 0x%x", error, expected_error);
	if (bits_told)
		check_entries();
	return report_summary();
}
