// The smallest backend: guest physical memory is where the slots say, nothing is intercepted that need not be, and
// accesses outside all slots go through the host's emulator to its devices. Written against the generated header only.
//
// VARIANT_* make libraries that a host must refuse, or survive. VARIANT_LARGER and VARIANT_SMALLER go with headers in which
// structures have grown by an array `grown`, or have lost what came last.

#include "vmtape_backend.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define TEXT(s) ((vt_Text){(const uint8_t *)(s), sizeof(s) - 1})
// A truth value is any byte but zero.
#define ANY_TRUE 2
#define MAX_SLOTS 16
#define MAX_CPUID 256

#ifdef VARIANT_LARGER
// What this host does not have is zero where it is read, and where it is written that harms nobody.
#define GROWN_IS_ZERO(p) grown_is_zero((p)->grown, sizeof(p)->grown)
#define WRITE_GROWN(p) memset((p)->grown, 0xff, sizeof(p)->grown)
static void grown_is_zero(const void *grown, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (((const uint8_t *)grown)[i])
            abort();
}
#else
#define GROWN_IS_ZERO(p) ((void)(p))
#define WRITE_GROWN(p) ((void)(p))
#endif

struct vt_Vm {
    vt_MemoryRegion slots[MAX_SLOTS];
    vt_CpuidEntry cpuid[MAX_CPUID];
    size_t cpuid_count;
};

static bool find_slot(const vt_Vm *vm, uint64_t gpa, uint64_t *hpa) {
    for (int i = 0; i < MAX_SLOTS; i++) {
        const vt_MemoryRegion *slot = &vm->slots[i];
        if (gpa - slot->gpa < slot->size) {
            *hpa = slot->hpa + (gpa - slot->gpa);
            return true;
        }
    }
    return false;
}

// --- the guest's page walk: 4-level paging with 4 KiB, 2 MiB and 1 GiB pages, present, writable and user bits ---

enum { P = 1, W = 2, U = 4, A = 0x20, D = 0x40, PS = 0x80 };
#define FRAME 0x000ffffffffff000ull
#define CR0_WP (1ull << 16)
#define CR0_PG (1ull << 31)

struct walk {
    uint64_t gpa;
    bool writable;
};

static bool page_fault(const vt_Access *access, uint32_t code, vt_Exception *fault) {
    *fault = (vt_Exception){.vector = vt_Vector_PF, .has_error_code = true, .payload = access->gva};
    fault->error_code = code | (access->kind == vt_AccessKind_WRITE ? W : 0) | (access->user ? U : 0);
    return false;
}

static bool fault_in(vt_HostRef host, uint64_t hpa, uint64_t size) {
    vt_MemoryStatus status = vt_MemoryStatus_REFUSED;
    host.table->fault_in(host.ctx, hpa, size, &status);
    return status == vt_MemoryStatus_READY;
}

static bool read_entry(vt_HostRef host, uint64_t hpa, uint64_t *entry) {
    vt_MemoryStatus status = vt_MemoryStatus_REFUSED;
    vt_SliceMut_u8 buffer = {.ptr = (uint8_t *)entry, .len = sizeof *entry};
    host.table->try_read(host.ctx, hpa, buffer, &status);
#ifdef VARIANT_IGNORES_STATUS
    return true;
#endif
    if (status == vt_MemoryStatus_MISSING && fault_in(host, hpa, sizeof *entry))
        host.table->try_read(host.ctx, hpa, buffer, &status);
    return status == vt_MemoryStatus_READY;
}

static bool walk(const vt_Vm *vm, const vt_VcpuState *state, const vt_Access *access, vt_HostRef host,
                 struct walk *out, vt_Exception *fault) {
    bool write = access->kind == vt_AccessKind_WRITE;
    *out = (struct walk){.gpa = access->gva, .writable = true};
    if (!(state->cr0 & CR0_PG))
        return true;

    uint64_t table = state->cr3 & FRAME;
    uint32_t allowed = W | U;
    for (int level = 4; level >= 1; level--) {
        int shift = 12 + 9 * (level - 1);
        uint64_t hpa, entry = 0;
        vt_MemoryStatus exchanged;
        if (!find_slot(vm, table + 8 * (access->gva >> shift & 511), &hpa) ||
            !read_entry(host, hpa, &entry) || !(entry & P))
            return page_fault(access, 0, fault);
        allowed &= entry;
        bool leaf = level == 1 || (level < 4 && entry & PS);
        if (leaf && ((access->user && !(allowed & U)) ||
                     (write && !(allowed & W) && (access->user || state->cr0 & CR0_WP))))
            return page_fault(access, P, fault);

        uint64_t touched = entry | A | (leaf && write ? D : 0);
        if (touched != entry)
            host.table->try_cmpxchg(host.ctx, hpa, entry, touched, sizeof entry, &exchanged);
        if (leaf) {
            uint64_t offset = ((uint64_t)1 << shift) - 1;
            out->gpa = (entry & FRAME & ~offset) | (access->gva & offset);
            out->writable = touched & D && (allowed & W || !(state->cr0 & CR0_WP));
            return true;
        }
        table = entry & FRAME;
    }
    return false;
}

// --- silicon ---

static vt_Status access_(vt_Vm *vm, uint32_t vcpu, vt_VcpuState *state, const vt_Access *access, vt_HostRef host,
                         vt_Exit *exit, vt_Answer *answer) {
    (void)vcpu;
    struct walk found;
    uint64_t hpa;
#ifdef VARIANT_PANICS
    return vt_STATUS_PANICKED;
#endif
    GROWN_IS_ZERO(state);
    *answer = (vt_Answer){.verdict = vt_Verdict_FAULT};
    WRITE_GROWN(answer), WRITE_GROWN(exit), WRITE_GROWN(state);
    if (!walk(vm, state, access, host, &found, &answer->fault))
        return vt_STATUS_OK;
    if (!find_slot(vm, found.gpa, &hpa)) {
        answer->verdict = vt_Verdict_EXIT;
        *exit = (vt_Exit){.isa = vt_Isa_VMX, .reason = vt_VmxReason_EPT_MISCONFIG, .gpa = found.gpa};
        WRITE_GROWN(exit);
        exit->gva = access->gva;
        exit->stimulus = vt_StimulusKind_ACCESS;
        exit->access = *access;
        return vt_STATUS_OK;
    }
    answer->verdict = vt_Verdict_NATIVE;
    answer->mapping = (vt_Mapping){
        .gpa = found.gpa & ~0xfffull,
        .hpa = hpa & ~0xfffull,
        .read = ANY_TRUE,
        .write = found.writable ? ANY_TRUE : 0,
        .fetch = ANY_TRUE,
        .kind = vt_MappingKind_RAM,
        .guest_page_shift = 12,
    };
    return vt_STATUS_OK;
}

static vt_Status sensitive(vt_Vm *vm, uint32_t vcpu, vt_VcpuState *state, const vt_Sensitive *insn, vt_HostRef host,
                           vt_Exit *exit, vt_Exception *fault, vt_Verdict *verdict) {
    (void)vm, (void)vcpu, (void)state, (void)host, (void)fault;
    GROWN_IS_ZERO(exit);
    *exit = (vt_Exit){.isa = vt_Isa_VMX, .stimulus = vt_StimulusKind_SENSITIVE, .insn = *insn};
    WRITE_GROWN(exit);
    switch (insn->kind) {
    case vt_SensitiveKind_INTERRUPT_WINDOW: exit->reason = vt_VmxReason_INTERRUPT_WINDOW; break;
    case vt_SensitiveKind_TRIPLE_FAULT: exit->reason = vt_VmxReason_TRIPLE_FAULT; break;
    case vt_SensitiveKind_HLT: exit->reason = vt_VmxReason_HLT; break;
    case vt_SensitiveKind_CPUID: exit->reason = vt_VmxReason_CPUID; break;
    default: *verdict = vt_Verdict_NATIVE; return vt_STATUS_OK;
    }
    *verdict = vt_Verdict_EXIT;
    return vt_STATUS_OK;
}

static vt_Status exception(vt_Vm *vm, uint32_t vcpu, vt_VcpuState *state, const vt_Exception *exception,
                           vt_HostRef host, vt_Exit *exit, vt_Verdict *verdict) {
    (void)vm, (void)vcpu, (void)state, (void)exception, (void)host, (void)exit;
    *verdict = vt_Verdict_NATIVE;
    return vt_STATUS_OK;
}

// --- KVM ---

static void want(vt_VcpuState *state, vt_SensitiveKind kind, bool on) {
    uint64_t bit = (uint64_t)1 << kind;
    state->intercepts.sensitive = on ? state->intercepts.sensitive | bit : state->intercepts.sensitive & ~bit;
}

static vt_Status enter(vt_Vm *vm, uint32_t vcpu, vt_VcpuState *state, vt_HostRef host, vt_Resume *resume) {
    (void)vm;
    GROWN_IS_ZERO(state);
    *resume = (vt_Resume){.kind = vt_ResumeKind_RESUME};
    WRITE_GROWN(resume), WRITE_GROWN(state);
    want(state, vt_SensitiveKind_HLT, true);
    want(state, vt_SensitiveKind_CPUID, true);
    want(state, vt_SensitiveKind_TRIPLE_FAULT, true);
    vt_Maybe vector;
    host.table->interrupt(host.ctx, vcpu, false, &vector);
    GROWN_IS_ZERO(&vector);
    bool pending = vector.there;
    if (state->activity == vt_Activity_HLT) {
        if (!pending) {
            resume->kind = vt_ResumeKind_BLOCKED;
            return vt_STATUS_OK;
        }
        state->activity = vt_Activity_ACTIVE;
    }
    // RFLAGS.IF, and not in the shadow of STI or MOV SS.
    bool open = state->rflags & 1 << 9 && !(state->interruptibility & 3) && !state->inject.valid;
    want(state, vt_SensitiveKind_INTERRUPT_WINDOW, pending && !open);
    if (pending && open) {
        state->inject = (vt_Event){.valid = true, .kind = vt_EventKind_EXTERNAL_INTERRUPT};
        host.table->interrupt(host.ctx, vcpu, true, &vector);
        state->inject.vector = (uint8_t)vector.value;
    }
    return vt_STATUS_OK;
}

#ifdef VARIANT_OUTER_HOST
// The host of the `emulate` that goes on.
static vt_HostRef outer;

static vt_Status read_byte(vt_HostRef host, uint64_t hpa, uint8_t *data) {
    vt_MemoryStatus status;
    return host.table->try_read(host.ctx, hpa, (vt_SliceMut_u8){.ptr = data, .len = 1}, &status);
}
#endif

static vt_Status mmu_translate(void *ctx, const vt_VcpuState *state, const vt_Access *access, vt_HostRef host,
                               vt_Translated *out) {
    struct walk found;
    GROWN_IS_ZERO(state);
    WRITE_GROWN(out);
#ifdef VARIANT_OUTER_HOST
    uint8_t data;
    if (host.ctx == outer.ctx || read_byte(outer, 0, &data) != vt_STATUS_BUSY || read_byte(host, 0, &data) != vt_STATUS_OK)
        abort();
#endif
    if (!walk(ctx, state, access, host, &found, &out->fault))
        return vt_STATUS_GUEST_FAULT;
    out->translation = (vt_Translation){.gpa = found.gpa};
    out->translation.ram = find_slot(ctx, found.gpa, &out->translation.hpa);
    return vt_STATUS_OK;
}

static vt_Status mmu_wrote(void *ctx, uint64_t gpa, uint8_t len, vt_HostRef host) {
    (void)ctx, (void)gpa, (void)len, (void)host;
    return vt_STATUS_OK;
}

#ifndef VARIANT_SMALLER
static vt_Status mmu_knows(void *ctx, vt_Slice_u8 insn, uint8_t *knows) {
    (void)ctx, (void)insn;
    *knows = true;
    return vt_STATUS_OK;
}
#endif

static const vt_MmuTable mmu_table = {.abi_version = vt_ABI_VERSION,
                                      .table_size = sizeof(vt_MmuTable),
                                      .translate = mmu_translate,
#ifndef VARIANT_SMALLER
                                      .knows = mmu_knows,
#endif
                                      .wrote = mmu_wrote};

static void cpuid(const vt_Vm *vm, vt_VcpuState *state) {
    vt_CpuidEntry found = {0};
    uint32_t function = (uint32_t)state->gpr[vt_GPR_RAX], index = (uint32_t)state->gpr[vt_GPR_RCX];
    for (size_t i = 0; i < vm->cpuid_count; i++) {
        const vt_CpuidEntry *entry = &vm->cpuid[i];
        if (entry->function == function &&
            (!(entry->flags & vt_CPUID_FLAG_SIGNIFICANT_INDEX) || entry->index == index)) {
            found = *entry;
            break;
        }
    }
    state->gpr[vt_GPR_RAX] = found.eax;
    state->gpr[vt_GPR_RBX] = found.ebx;
    state->gpr[vt_GPR_RCX] = found.ecx;
    state->gpr[vt_GPR_RDX] = found.edx;
}

static vt_Status handle_exit(vt_Vm *vm, uint32_t vcpu, vt_VcpuState *state, const vt_Exit *exit, vt_HostRef host,
                             vt_Resume *resume) {
    GROWN_IS_ZERO(state), GROWN_IS_ZERO(exit);
    *resume = (vt_Resume){.kind = vt_ResumeKind_RESUME};
    WRITE_GROWN(resume);
    if (exit->stimulus == vt_StimulusKind_ACCESS) {
        vt_MmuRef mmu = {.ctx = vm, .table = &mmu_table};
        vt_EmulateRequest request = {0};
        vt_Emulated done;
#ifdef VARIANT_OUTER_HOST
        outer = host;
#endif
        WRITE_GROWN(&request), WRITE_GROWN(state);
        host.table->emulate(host.ctx, vcpu, state, &request, mmu, &done);
        if (done.status == vt_EmulateStatus_UNHANDLEABLE) {
            resume->kind = vt_ResumeKind_INTERNAL_ERROR;
            resume->data[0] = 1;
        } else if (done.status == vt_EmulateStatus_FAULT) {
            state->inject = (vt_Event){.valid = true, .kind = vt_EventKind_HARDWARE_EXCEPTION};
            state->inject.vector = done.fault.vector;
            state->inject.has_error_code = done.fault.has_error_code;
            state->inject.error_code = done.fault.error_code;
            if (done.fault.vector == vt_Vector_PF)
                state->cr2 = done.fault.payload;
        }
        return vt_STATUS_OK;
    }
    switch (exit->insn.kind) {
    case vt_SensitiveKind_CPUID:
        cpuid(vm, state);
        state->rip += exit->insn.len;
        // With the instruction the shadow of STI or MOV SS before it is over.
        state->interruptibility &= ~3u;
        break;
    case vt_SensitiveKind_HLT:
        state->interruptibility &= ~3u;
        state->rip += exit->insn.len;
        state->activity = vt_Activity_HLT;
        resume->kind = vt_ResumeKind_BLOCKED;
        break;
    case vt_SensitiveKind_TRIPLE_FAULT: resume->kind = vt_ResumeKind_SHUTDOWN; break;
    default: break;
    }
    return vt_STATUS_OK;
}

// --- control ---

static vt_Status describe(vt_DescriptionSink sink) {
#ifdef VARIANT_NO_NAME
    return vt_STATUS_OK;
#endif
    sink.head(sink.ctx, TEXT("identity"), TEXT("guest physical memory as the slots say, no tables"), vt_Isa_VMX,
              vt_Vendor_INTEL);
    vt_RawRow row = {.id = 1, .name = TEXT("identity"), .text = TEXT("a gpa is found in its slot")};
    row.source = TEXT("identity.c, find_slot()");
    row.value = TEXT("");
#ifndef VARIANT_SMALLER
    row.since = TEXT("1");
#endif
    row.size = sizeof row;
    sink.row(sink.ctx, vt_TableId_RULES, &row);
    return vt_STATUS_OK;
}

static vt_Status create(const vt_RawConfig *config, vt_Vm **vm, vt_Sink_u8 error) {
    GROWN_IS_ZERO(config), GROWN_IS_ZERO(config->silicon);
    if (config->silicon->vendor != vt_Vendor_INTEL) {
        vt_Text reason = TEXT("identity reports exits with Intel's numbers: it needs an Intel host");
        error.put(error.ctx, reason.ptr, reason.len);
        return vt_STATUS_REFUSED;
    }
    // A tape with an option that is not known here means something else. `resolved` gives ("kvm", "none").
    for (size_t i = 0; i < config->options_len; i++)
        if (config->options[i].key.len != 3 || memcmp(config->options[i].key.ptr, "kvm", 3)) {
            vt_Text reason = TEXT("identity has no option ");
            error.put(error.ctx, reason.ptr, reason.len);
            error.put(error.ctx, config->options[i].key.ptr, config->options[i].key.len);
            return vt_STATUS_REFUSED;
        }
    *vm = calloc(1, sizeof **vm);
    return *vm ? vt_STATUS_OK : -12;
}

static void destroy(vt_Vm *vm) { free(vm); }

static void last_error(const vt_Vm *vm, vt_Sink_u8 sink) {
    (void)vm;
    vt_Text reason = TEXT("the walk was asked to fail");
    sink.put(sink.ctx, reason.ptr, reason.len);
}

static vt_Status resolved(vt_Vm *vm, vt_Sink_RawOption sink) {
    (void)vm;
    vt_RawOption option = {.key = TEXT("kvm"), .value = TEXT("none")};
    sink.put(sink.ctx, &option, 1);
    return vt_STATUS_OK;
}

static vt_Status check_extension(vt_Vm *vm, uint32_t cap, int64_t *value) {
    (void)vm, (void)cap;
    *value = 0;
    return vt_STATUS_OK;
}

static vt_Status supported_cpuid(vt_Vm *vm, vt_Slice_CpuidEntry silicon, vt_Sink_CpuidEntry sink) {
    (void)vm;
    sink.put(sink.ctx, silicon.ptr, silicon.len);
    return vt_STATUS_OK;
}

static vt_Status set_memory_region(vt_Vm *vm, const vt_MemoryRegion *region, vt_HostRef host) {
    (void)host;
    GROWN_IS_ZERO(region);
    if (region->slot >= MAX_SLOTS || (region->gpa | region->size | region->hpa) & 0xfff)
        return -22; // -EINVAL
    for (uint32_t i = 0; i < MAX_SLOTS; i++) {
        const vt_MemoryRegion *other = &vm->slots[i];
        if (i != region->slot && region->gpa < other->gpa + other->size && other->gpa < region->gpa + region->size)
            return -17; // -EEXIST
    }
    vm->slots[region->slot] = *region;
    return vt_STATUS_OK;
}

static vt_Status enable_cap(vt_Vm *vm, uint32_t cap, uint32_t flags, uint64_t arg) {
    (void)vm, (void)cap, (void)flags, (void)arg;
    return -22; // -EINVAL
}

static vt_Status get_dirty_log(vt_Vm *vm, uint32_t slot, vt_HostRef host, vt_Sink_u64 sink) {
    (void)vm, (void)slot, (void)host, (void)sink;
    return -25; // -ENOTTY
}

static vt_Status clear_dirty_log(vt_Vm *vm, uint32_t slot, uint64_t first, uint32_t pages, vt_Slice_u64 bits,
                                 vt_HostRef host) {
    (void)vm, (void)slot, (void)first, (void)pages, (void)bits, (void)host;
    return -25; // -ENOTTY
}

static vt_Status harvest_dirty_ring(vt_Vm *vm, uint32_t vcpu, vt_HostRef host, vt_Sink_DirtyGfn sink) {
    (void)vm, (void)vcpu, (void)host, (void)sink;
    return -22; // -EINVAL
}

static vt_Status reset_dirty_rings(vt_Vm *vm, vt_HostRef host, uint32_t *count) {
    (void)vm, (void)host, (void)count;
    return -22; // -EINVAL
}

static vt_Status create_vcpu(vt_Vm *vm, uint32_t vcpu) {
    (void)vm, (void)vcpu;
    return vt_STATUS_OK;
}

static vt_Status set_cpuid(vt_Vm *vm, uint32_t vcpu, vt_VcpuState *state, vt_Slice_CpuidEntry entries,
                           vt_HostRef host) {
    (void)vcpu, (void)state, (void)host;
    if (entries.len > MAX_CPUID)
        return -7;
    for (size_t i = 0; i < entries.len; i++)
        GROWN_IS_ZERO(&entries.ptr[i]);
    memcpy(vm->cpuid, entries.ptr, entries.len * sizeof *entries.ptr);
    vm->cpuid_count = entries.len;
    return vt_STATUS_OK;
}

static vt_Status get_cpuid(vt_Vm *vm, uint32_t vcpu, vt_Sink_CpuidEntry sink) {
    (void)vcpu;
    sink.put(sink.ctx, vm->cpuid, vm->cpuid_count);
    return vt_STATUS_OK;
}

static vt_Status msr_index_list(vt_Vm *vm, struct vt_Slice_CpuidEntry silicon, struct vt_Sink_u32 out) {
    (void)vm, (void)silicon, (void)out;
    return vt_STATUS_OK;
}

static vt_Status msr_feature_index_list(vt_Vm *vm, struct vt_Sink_u32 out) {
    (void)vm, (void)out;
    return vt_STATUS_OK;
}

static vt_Status get_msrs(vt_Vm *vm, uint32_t vcpu, vt_VcpuState *state, struct vt_SliceMut_MsrEntry entries,
                          vt_HostRef host, uint32_t *done) {
    (void)vm, (void)vcpu, (void)state, (void)entries, (void)host;
    *done = 0;
    return vt_STATUS_OK;
}

static vt_Status set_msrs(vt_Vm *vm, uint32_t vcpu, vt_VcpuState *state, struct vt_Slice_MsrEntry entries,
                          vt_HostRef host, uint32_t *done) {
    (void)vm, (void)vcpu, (void)state, (void)entries, (void)host;
    *done = 0;
    return vt_STATUS_OK;
}

static vt_Status get_state(vt_Vm *vm, uint32_t vcpu, vt_VcpuState *state, vt_StateKind kind, vt_HostRef host,
                           struct vt_Sink_u8 out) {
    (void)vm, (void)vcpu, (void)state, (void)kind, (void)host, (void)out;
    return -25;
}

static vt_Status set_state(vt_Vm *vm, uint32_t vcpu, vt_VcpuState *state, vt_StateKind kind, struct vt_Slice_u8 bytes,
                           vt_HostRef host) {
    (void)vm, (void)vcpu, (void)state, (void)kind, (void)bytes, (void)host;
    return -25;
}

static vt_Status state_changed(vt_Vm *vm, uint32_t vcpu, vt_VcpuState *state, vt_HostRef host) {
    (void)vm, (void)state;
    host.table->flush_tlb(host.ctx, vcpu, vt_FlushScope_ALL, 0);
    return vt_STATUS_OK;
}

static vt_Status save(vt_Vm *vm, vt_Sink_u8 sink) {
    sink.put(sink.ctx, (const uint8_t *)vm, sizeof *vm);
    return vt_STATUS_OK;
}

static vt_Status restore(vt_Vm *vm, vt_Slice_u8 saved) {
    if (saved.len != sizeof *vm)
        return -22;
    memcpy(vm, saved.ptr, saved.len);
    return vt_STATUS_OK;
}

#ifndef VARIANT_SMALLER
static vt_Status query(vt_Vm *vm, uint32_t vcpu, vt_Query what, uint64_t *value) {
    (void)vm, (void)vcpu;
    if (what != vt_Query_SHADOW_PAGES)
        return -25; // -ENOTTY
    *value = 0;
    return vt_STATUS_OK;
}
#endif

static vt_Sizes sizes = vt_SIZES;

// Nothing is kept per physical CPU.
static vt_Status on_cpu(vt_Vm *vm, uint32_t cpu, vt_HostRef host) {
    (void)vm, (void)cpu, (void)host;
    return vt_STATUS_OK;
}

static vt_Status vcpu_load(vt_Vm *vm, uint32_t vcpu, uint32_t cpu, vt_HostRef host) {
    (void)vm, (void)vcpu, (void)cpu, (void)host;
    return vt_STATUS_OK;
}

static vt_Status host_nmi(vt_Vm *vm, uint32_t vcpu, vt_VcpuState *state, vt_HostRef host, vt_Exit *exit,
                          vt_Verdict *verdict) {
    (void)vm, (void)vcpu, (void)state, (void)host, (void)exit;
    *verdict = vt_Verdict_NATIVE;
    return vt_STATUS_OK;
}

static const vt_BackendTable table = {
#ifdef VARIANT_OTHER_VERSION
    .abi_version = vt_ABI_VERSION + 1,
#else
    .abi_version = vt_ABI_VERSION,
#endif
#ifdef VARIANT_TABLE_SIZE
    .table_size = VARIANT_TABLE_SIZE,
#elif defined(VARIANT_SMALLER)
    .table_size = offsetof(vt_BackendTable, query),
#else
    .table_size = sizeof(vt_BackendTable),
#endif
#ifdef VARIANT_SIZES_BYTES
    .sizes_bytes = VARIANT_SIZES_BYTES,
#else
    .sizes_bytes = sizeof sizes,
#endif
#ifndef VARIANT_NO_SIZES
    .sizes = &sizes,
#endif
    .build = {(const uint8_t *)"identity 1", 10},
    .describe = describe,
    .create = create,
    .destroy = destroy,
    .last_error = last_error,
    .resolved = resolved,
    .check_extension = check_extension,
    .supported_cpuid = supported_cpuid,
    .set_memory_region = set_memory_region,
    .create_vcpu = create_vcpu,
    .set_cpuid = set_cpuid,
    .get_cpuid = get_cpuid,
    .msr_index_list = msr_index_list,
    .msr_feature_index_list = msr_feature_index_list,
    .get_msrs = get_msrs,
    .set_msrs = set_msrs,
    .get_state = get_state,
    .set_state = set_state,
    .state_changed = state_changed,
    .save = save,
    .restore = restore,
    .access = access_,
    .sensitive = sensitive,
#ifndef VARIANT_NULL_FUNCTION
    .exception = exception,
#endif
    .enter = enter,
    .handle_exit = handle_exit,
#ifndef VARIANT_SMALLER
    .query = query,
#endif
    .enable_cap = enable_cap,
    .get_dirty_log = get_dirty_log,
    .clear_dirty_log = clear_dirty_log,
    .harvest_dirty_ring = harvest_dirty_ring,
    .reset_dirty_rings = reset_dirty_rings,
    .enable_cpu = on_cpu,
    .disable_cpu = on_cpu,
    .vcpu_load = vcpu_load,
    .vcpu_put = on_cpu,
    .host_nmi = host_nmi,
    .crash = on_cpu,
};

#ifdef VARIANT_NO_SYMBOL
const vt_BackendTable *vmtape_backend_v9(void) { return &table; }
#else
const vt_BackendTable *vmtape_backend_v2(void) {
    (void)sizes;
#ifdef VARIANT_WRONG
    sizes.VARIANT_WRONG = VARIANT_WRONG_SIZE;
#endif
    return &table;
}
#endif
