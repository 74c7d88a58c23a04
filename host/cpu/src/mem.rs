//! Memory accesses: an inline path for TLB hits, and one slow path that checks everything.
//!
//! `read`, `write` and `rmw` take a segment and an offset and do what the current instruction's operands need. The
//! `_linear` forms take a linear address and whose access it is: descriptor tables and stacks in event delivery are
//! implicit supervisor accesses. A fault leaves memory as it was, also where the second page faults.

use crate::{
    core::{Core, fault, gp, is_expand_down, rights},
    env::{Interrupted, OperandPart},
    operand::Word,
    tlb::Context,
};
use vmtape_arch::{
    PAGE_SHIFT, PAGE_SIZE,
    access::{Access, AccessKind, MappingKind},
    exception::{Exception, Vector},
    sensitive::{Sensitive, SensitiveKind},
    vcpu::seg,
};
use vmtape_jit::{Miss, Use};

/// Whose access it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// The current privilege level's.
    Current,
    /// The processor's own: supervisor whatever the CPL, and SMAP applies whatever RFLAGS.AC.
    Implicit,
}

/// Where a byte range on one page lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Host physical for RAM, guest physical otherwise.
    address: u64,
    kind: MappingKind,
}

/// What compiled code has asked for ahead of the handler that is about to access it: a place that no TLB keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead {
    gva: u64,
    len: usize,
    kind: AccessKind,
    place: Place,
}

/// A byte range that has been translated, on up to two pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    first: Place,
    first_len: usize,
    second: Place,
}

impl Span {
    fn meets_devices(&self) -> bool {
        // Where the range is on one page, the second place is the first.
        self.first.kind != MappingKind::RAM || self.second.kind != MappingKind::RAM
    }
}

impl Core<'_> {
    /// Reads from a segment.
    #[inline(always)]
    pub fn read<T: Word>(&mut self, segment: u8, offset: u64) -> Result<T, Interrupted> {
        if let Some(hpa) = self.fast_range(segment, offset, T::BYTES, AccessKind::READ)
            && let Some(value) = T::load(&self.ram, hpa)
        {
            return Ok(value);
        }
        self.read_slow(segment, offset)
    }

    /// Writes to a segment.
    #[inline(always)]
    pub fn write<T: Word>(&mut self, segment: u8, offset: u64, value: T) -> Result<(), Interrupted> {
        if let Some(hpa) = self.fast_range(segment, offset, T::BYTES, AccessKind::WRITE)
            && self.store(hpa, value)
        {
            return Ok(());
        }
        self.write_slow(segment, offset, value)
    }

    /// Reads, lets `f` compute, and writes; `f` runs once it is known that neither faults. Its second result is
    /// handed on.
    #[inline(always)]
    pub fn rmw<T: Word, R>(
        &mut self,
        segment: u8,
        offset: u64,
        f: impl FnOnce(T) -> (T, R),
    ) -> Result<R, Interrupted> {
        if let Some(hpa) = self.fast_range(segment, offset, T::BYTES, AccessKind::WRITE)
            && let Some(old) = T::load(&self.ram, hpa)
        {
            let (new, result) = f(old);
            self.store(hpa, new);
            return Ok(result);
        }
        let (span, old) = self.rmw_slow::<T>(segment, offset)?;
        let (new, result) = f(old);
        self.write_span(&span, &new.to_slice()[..T::BYTES as usize])?;
        Ok(result)
    }

    /// Stores on a page that the inline path may write to.
    #[inline(always)]
    fn store<T: Word>(&self, hpa: u64, value: T) -> bool {
        if self.keeps_changes {
            return value.store_counted(&self.ram, hpa, self.state.icount);
        }
        value.store(&self.ram, hpa)
    }

    #[cold]
    #[inline(never)]
    fn read_slow<T: Word>(&mut self, segment: u8, offset: u64) -> Result<T, Interrupted> {
        let gva = self.linear(segment, offset, T::BYTES, AccessKind::READ)?;
        self.read_linear(gva, Privilege::Current)
    }

    #[cold]
    #[inline(never)]
    fn write_slow<T: Word>(&mut self, segment: u8, offset: u64, value: T) -> Result<(), Interrupted> {
        let gva = self.linear(segment, offset, T::BYTES, AccessKind::WRITE)?;
        self.write_linear(gva, value, Privilege::Current)
    }

    #[cold]
    #[inline(never)]
    fn rmw_slow<T: Word>(&mut self, segment: u8, offset: u64) -> Result<(Span, T), Interrupted> {
        let gva = self.linear(segment, offset, T::BYTES, AccessKind::WRITE)?;
        if self.model.rmw_reads_first {
            self.span(gva, T::BYTES as usize, AccessKind::READ, Privilege::Current)?;
        }
        let span = self.span(gva, T::BYTES as usize, AccessKind::WRITE, Privilege::Current)?;
        let mut bytes = [0; 16];
        self.read_span(&span, &mut bytes[..T::BYTES as usize])?;
        Ok((span, T::from_slice(&bytes)))
    }

    /// Reads at a linear address.
    pub fn read_linear<T: Word>(&mut self, gva: u64, how: Privilege) -> Result<T, Interrupted> {
        if let Some(hpa) = self.tlb.lookup(self.fast_context_of(how), gva, T::BYTES, AccessKind::READ)
            && let Some(value) = T::load(&self.ram, hpa)
        {
            return Ok(value);
        }
        let mut bytes = [0; 16];
        let len = T::BYTES as usize;
        let span = self.span(gva, len, AccessKind::READ, how)?;
        self.read_span(&span, &mut bytes[..len])?;
        Ok(T::from_slice(&bytes))
    }

    /// Writes at a linear address.
    pub fn write_linear<T: Word>(&mut self, gva: u64, value: T, how: Privilege) -> Result<(), Interrupted> {
        if let Some(hpa) = self.tlb.lookup(self.fast_context_of(how), gva, T::BYTES, AccessKind::WRITE)
            && self.store(hpa, value)
        {
            return Ok(());
        }
        let len = T::BYTES as usize;
        let span = self.span(gva, len, AccessKind::WRITE, how)?;
        self.write_span(&span, &value.to_slice()[..len])
    }

    /// Where the first level of the TLB has what such an access may do at once.
    fn fast_context_of(&self, how: Privilege) -> Context {
        match how {
            Privilege::Current => self.fast_context,
            Privilege::Implicit if self.emulating => Context::Slow,
            Privilege::Implicit => Context::Supervisor,
        }
    }

    /// Reads up to a page of bytes from a segment.
    pub fn read_bytes(&mut self, segment: u8, offset: u64, bytes: &mut [u8]) -> Result<(), Interrupted> {
        let gva = self.linear(segment, offset, bytes.len() as u64, AccessKind::READ)?;
        let span = self.span(gva, bytes.len(), AccessKind::READ, Privilege::Current)?;
        self.read_span(&span, bytes)
    }

    /// Writes up to a page of bytes to a segment.
    pub fn write_bytes(&mut self, segment: u8, offset: u64, bytes: &[u8]) -> Result<(), Interrupted> {
        let gva = self.linear(segment, offset, bytes.len() as u64, AccessKind::WRITE)?;
        let span = self.span(gva, bytes.len(), AccessKind::WRITE, Privilege::Current)?;
        self.write_span(&span, bytes)
    }

    /// Checks that up to a page of bytes may be written, so that what follows cannot fault half-way.
    pub fn probe_write(&mut self, segment: u8, offset: u64, len: u64) -> Result<(), Interrupted> {
        let gva = self.linear(segment, offset, len, AccessKind::WRITE)?;
        self.span(gva, len as usize, AccessKind::WRITE, Privilege::Current)?;
        Ok(())
    }

    /// The linear address of `size` bytes in a segment, with the checks of segmentation.
    // See: SDM vol. 3A 5.3 Limit Checking, 5.4 Type Checking; vol. 1 3.3.7.1 Canonical Addressing
    pub fn linear(&self, segment: u8, offset: u64, size: u64, kind: AccessKind) -> Result<u64, Interrupted> {
        let number = (segment & 7) as usize;
        let violation = || {
            let vector = if number == seg::SS { Vector::SS } else { Vector::GP };
            Interrupted::Fault(Exception::with_code(vector, 0))
        };
        let descriptor = &self.state.seg[number];
        if self.state.is_64bit_code() {
            let gva = offset.wrapping_add(self.segments[number].base);
            let last = gva.wrapping_add(size - 1);
            return if self.is_canonical(gva) && self.is_canonical(last) {
                Ok(gva)
            } else {
                Err(violation())
            };
        }
        if !self.in_real_mode() {
            let (readable, writable) = rights(descriptor.attr);
            let allowed = if kind == AccessKind::WRITE { writable } else { readable };
            if !allowed {
                return Err(violation());
            }
        }
        let last = offset.wrapping_add(size - 1);
        let limit = u64::from(descriptor.limit);
        let inside = if is_expand_down(descriptor.attr) {
            let top = if descriptor.attr.db() { u64::from(u32::MAX) } else { 0xffff };
            offset > limit && last <= top && last >= offset
        } else {
            let wraps = limit == u64::from(u32::MAX) && self.model.rules.flat_segments_wrap;
            (last <= limit || wraps) && last >= offset
        };
        if inside { Ok(descriptor.base.wrapping_add(offset) & self.linear_mask) } else { Err(violation()) }
    }

    /// The host physical address of a range that the inline path could access.
    #[inline(always)]
    pub(crate) fn fast_range(&self, segment: u8, offset: u64, len: u64, kind: AccessKind) -> Option<u64> {
        let fast = &self.segments[(segment & 7) as usize];
        let end = if kind == AccessKind::WRITE { fast.write_end } else { fast.read_end };
        let gva = offset.wrapping_add(fast.base) & self.linear_mask;
        if offset.wrapping_add(len) > end {
            return None;
        }
        self.tlb.lookup(self.fast_context, gva, len, kind)
    }

    /// Translates a range of at most a page, both pages before anything is touched.
    pub(crate) fn span(
        &mut self,
        gva: u64,
        len: usize,
        kind: AccessKind,
        how: Privilege,
    ) -> Result<Span, Interrupted> {
        if how == Privilege::Current {
            self.check_data(gva, len, kind)?;
        }
        let room = (PAGE_SIZE - gva % PAGE_SIZE) as usize;
        let first_len = len.min(room);
        let first = self.translate(gva, first_len, kind, how)?;
        let mut second = first;
        if len > room {
            let next = gva.wrapping_add(room as u64) & self.linear_mask;
            second = self.translate(next, len - room, kind, how)?;
        }
        Ok(Span { first, first_len, second })
    }

    /// Alignment and data breakpoints. See: SDM vol. 3A 6.15 Interrupt 17, vol. 3B 18.2.4 Debug Control Register
    fn check_data(&mut self, gva: u64, len: usize, kind: AccessKind) -> Result<(), Interrupted> {
        if kind == AccessKind::FETCH {
            return Ok(());
        }
        if self.check_alignment && len <= 8 && !gva.is_multiple_of(len as u64) {
            return fault(Vector::AC);
        }
        if self.fast_context == Context::Slow && !self.emulating {
            crate::system::debug::data_access(self, gva, len as u64, kind == AccessKind::WRITE);
        }
        Ok(())
    }

    fn translate(
        &mut self,
        gva: u64,
        len: usize,
        kind: AccessKind,
        how: Privilege,
    ) -> Result<Place, Interrupted> {
        let implicit = how == Privilege::Implicit;
        let user = self.state.cpl == 3 && !implicit;
        let context = match (implicit, kind) {
            (true, _) => Context::Supervisor,
            (false, AccessKind::FETCH) if !user => Context::Supervisor,
            _ => self.context,
        };
        if !self.emulating
            && let Some(hpa) = self.known(context, gva, kind)
        {
            return Ok(Place { address: hpa, kind: MappingKind::RAM });
        }
        if let Some(ahead) =
            self.ahead.take_if(|ahead| (ahead.gva, ahead.len, ahead.kind) == (gva, len, kind))
        {
            return Ok(ahead.place);
        }
        self.ask(context, gva, len, kind, how)
    }

    /// Brings the page of an access that compiled code misses into the first level of the TLB. True: it is there, and the access can
    /// be made. Else it is the handler's, for which nothing has happened yet that does not happen once.
    pub(crate) fn refill(&mut self, miss: &Miss) -> Result<bool, Interrupted> {
        let (gva, len) = (miss.gva, usize::from(miss.size));
        let kind = if miss.to == Use::Read { AccessKind::READ } else { AccessKind::WRITE };
        let crosses = gva % PAGE_SIZE + len as u64 > PAGE_SIZE;
        if self.fast_context == Context::Slow || crosses || !self.is_canonical(gva) {
            return Ok(false);
        }
        if self.known(self.context, gva, kind).is_none() {
            if !miss.exact || miss.to == Use::Modify && self.model.rmw_reads_first {
                return Ok(false);
            }
            let place = self.ask(self.context, gva, len, kind, Privilege::Current)?;
            if place.kind != MappingKind::RAM {
                self.ahead = Some(Ahead { gva, len, kind, place });
                return Ok(false);
            }
        }
        Ok(self.tlb.lookup(self.fast_context, gva, len as u64, kind).is_some())
    }

    /// Asks the environment for a translation.
    fn ask(
        &mut self,
        context: Context,
        gva: u64,
        len: usize,
        kind: AccessKind,
        how: Privilege,
    ) -> Result<Place, Interrupted> {
        let implicit = how == Privilege::Implicit;
        let user = self.state.cpl == 3 && !implicit;
        let delivering = self.state.delivering;
        let access = Access {
            gva,
            kind,
            user: user.into(),
            implicit: implicit.into(),
            size: len.min(255) as u8,
            pad: 0,
            delivering,
        };
        let mapping = self.env.access(self.state, &access);
        self.tlb.sync(self.ram.epoch());
        let mapping = mapping?;
        let offset = gva % PAGE_SIZE;
        if mapping.kind != MappingKind::RAM {
            return Ok(Place { address: mapping.gpa | offset, kind: mapping.kind });
        }
        if !self.emulating {
            let found = self.tlb.insert(context, gva, &mapping, kind);
            self.note_write(context, gva, found, kind);
        }
        Ok(Place { address: mapping.hpa | offset, kind: mapping.kind })
    }

    /// The host physical address behind a byte that the TLB knows. The page of a write is noted as written; from there on
    /// the inline path writes to it, unless it holds code.
    fn known(&mut self, context: Context, gva: u64, kind: AccessKind) -> Option<u64> {
        if let Some(hpa) = self.tlb.lookup(context, gva, 1, kind) {
            return Some(hpa);
        }
        let found = self.tlb.find(context, gva, kind);
        self.note_write(context, gva, found, kind);
        found
    }

    fn note_write(&mut self, context: Context, gva: u64, found: Option<u64>, kind: AccessKind) {
        if let Some(hpa) = found
            && kind == AccessKind::WRITE
            && !self.ram.has_code(hpa)
        {
            self.ram.wrote(hpa, 1);
            self.tlb.allow_write(context, gva);
        }
    }

    pub(crate) fn read_span(&mut self, span: &Span, bytes: &mut [u8]) -> Result<(), Interrupted> {
        if self.emulating && span.meets_devices() && self.env.takes_operands() {
            return self.emulated_span(span, bytes, AccessKind::READ);
        }
        let (first, second) = bytes.split_at_mut(span.first_len);
        self.read_place(span.first, first)?;
        self.read_place(span.second, second)
    }

    pub(crate) fn write_span(&mut self, span: &Span, bytes: &[u8]) -> Result<(), Interrupted> {
        if self.emulating && span.meets_devices() && self.env.takes_operands() {
            return self.emulated_span(span, &mut bytes.to_vec(), AccessKind::WRITE);
        }
        let (first, second) = bytes.split_at(span.first_len);
        self.write_place(span.first, first)?;
        self.write_place(span.second, second)
    }

    /// An operand that KVM's emulator has from devices, or gives them, as a whole. What of it is RAM is copied.
    fn emulated_span(&mut self, span: &Span, bytes: &mut [u8], kind: AccessKind) -> Result<(), Interrupted> {
        let (first, second) = bytes.split_at_mut(span.first_len);
        let mut parts = Vec::new();
        for (place, bytes) in [(span.first, first), (span.second, second)] {
            let device = (place.kind != MappingKind::RAM).then_some(place.address);
            match (device, kind) {
                (Some(_), _) => {}
                (None, AccessKind::WRITE) => self.write_place(place, bytes)?,
                (None, _) => self.read_place(place, bytes)?,
            }
            if !bytes.is_empty() {
                parts.push(OperandPart { device, bytes });
            }
        }
        let done = match kind {
            AccessKind::WRITE => self.env.write_operand(&parts),
            _ => self.env.read_operand(&mut parts),
        };
        self.after_env();
        self.recheck_events();
        done
    }

    fn read_place(&mut self, place: Place, bytes: &mut [u8]) -> Result<(), Interrupted> {
        if bytes.is_empty() {
            return Ok(());
        }
        if place.kind == MappingKind::RAM {
            if !self.ram.read(place.address, bytes) {
                bytes.fill(0xff);
            }
            return Ok(());
        }
        let mut gpa = place.address;
        for chunk in device_chunks(bytes) {
            let size = chunk.len() as u8;
            self.offer_apic_access(place.kind, SensitiveKind::APIC_READ, gpa, size, 0)?;
            let value = self.env.device(self.state, gpa, size, None);
            self.after_env();
            self.recheck_events();
            chunk.copy_from_slice(&value?.to_le_bytes()[..chunk.len()]);
            gpa += u64::from(size);
        }
        Ok(())
    }

    fn write_place(&mut self, place: Place, bytes: &[u8]) -> Result<(), Interrupted> {
        if bytes.is_empty() {
            return Ok(());
        }
        if place.kind == MappingKind::RAM {
            let page = place.address >> PAGE_SHIFT;
            let before = self.ram.generation(page);
            self.ram.write_at(place.address, bytes, self.state.icount);
            if self.ram.generation(page) != before {
                self.look_again();
            }
            return Ok(());
        }
        let mut gpa = place.address;
        let mut copy = [0; PAGE_SIZE as usize];
        let copy = &mut copy[..bytes.len()];
        copy.copy_from_slice(bytes);
        for chunk in device_chunks(copy) {
            let size = chunk.len() as u8;
            let mut value = [0; 8];
            value[..chunk.len()].copy_from_slice(chunk);
            let value = u64::from_le_bytes(value);
            self.offer_apic_access(place.kind, SensitiveKind::APIC_WRITE, gpa, size, value)?;
            let done = self.env.device(self.state, gpa, size, Some(value));
            self.after_env();
            self.recheck_events();
            done?;
            gpa += u64::from(size);
        }
        Ok(())
    }

    fn offer_apic_access(
        &mut self,
        mapping: MappingKind,
        kind: SensitiveKind,
        gpa: u64,
        size: u8,
        value: u64,
    ) -> Result<(), Interrupted> {
        if mapping != MappingKind::APIC_PAGE {
            return Ok(());
        }
        let number = (gpa % PAGE_SIZE) as u32;
        let len = self.next_rip.wrapping_sub(self.state.rip) as u8;
        self.sensitive(&Sensitive { kind, len, size, number, value, address: gpa, ..Sensitive::default() })
    }

    /// Translates code: the host physical address, or `None` where there is no RAM.
    pub(crate) fn fetch(&mut self, gva: u64) -> Result<Option<u64>, Interrupted> {
        if self.state.is_64bit_code() && !self.is_canonical(gva) {
            return gp(0);
        }
        let place = self.translate(gva, 1, AccessKind::FETCH, Privilege::Current)?;
        Ok((place.kind == MappingKind::RAM).then_some(place.address))
    }
}

/// Cuts a range into the sizes that a device sees: the whole if it is 1, 2, 4 or 8 bytes, else eights and bytes.
fn device_chunks(bytes: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    let size = match bytes.len() {
        len @ (1 | 2 | 4 | 8) => len,
        len if len % 8 == 0 => 8,
        _ => 1,
    };
    bytes.chunks_mut(size)
}
