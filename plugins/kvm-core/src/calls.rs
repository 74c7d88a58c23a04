//! Calls of the boundary that `kvm.ko` hands on: to the MMU, to the state's ioctls, to the vendor's silicon. They follow from
//! their declaration in the ABI's contract, a section at a time.

/// The calls of silicon as a vendor has them: of a vCPU instead of its number.
macro_rules! ops_calls {
    (
        ()
        $({ [$($doc:literal)*] $call:ident $me:ident $accessor:ident $receiver:tt ($vcpu:ident: $id:ty, $($arg:ident: $type:ty,)*)
            [$result:ty] $out:tt $default:tt })*
    ) => {
        $(
            $(#[doc = $doc])*
            fn $call(&mut self, $vcpu: &mut Self::Vcpu, $($arg: $type),*) -> $result;
        )*
    };
}

/// Hands calls on to the MMU, unchanged.
macro_rules! ask_mmu {
    (
        ()
        $({ $docs:tt $call:ident $me:ident $accessor:ident [$($receiver:tt)*] ($($arg:ident: $type:ty,)*)
            [$result:ty] $out:tt $default:tt })*
    ) => {
        $(fn $call($($receiver)*, $($arg: $type),*) -> $result {
            $me.shared.kvm_mut().mmu.$call($($arg),*)
        })*
    };
}

/// Hands calls on to the functions of `state`, with the vCPU instead of its number.
macro_rules! ask_state {
    (
        ()
        $({ $docs:tt $call:ident $me:ident $accessor:ident [$($receiver:tt)*] ($vcpu:ident: $id:ty, $($arg:ident: $type:ty,)*)
            [$result:ty] $out:tt $default:tt })*
    ) => {
        $(fn $call($($receiver)*, $vcpu: $id, $($arg: $type),*) -> $result {
            state::$call($me.parts($vcpu), $($arg),*)
        })*
    };
}

/// Hands calls on to the vendor's silicon. An exit is at the vCPU's level.
macro_rules! ask_silicon {
    (
        ()
        $({ $docs:tt $call:ident $me:ident $accessor:ident [$($receiver:tt)*]
            ($vcpu:ident: $id:ty, $state:ident: $state_type:ty, $what:ident: $what_type:ty, $host:ident: $host_type:ty,
             $exit:ident: $exit_type:ty, $($arg:ident: $type:ty,)*)
            [$result:ty] $out:tt $default:tt })*
    ) => {
        $(fn $call(
            $($receiver)*,
            $vcpu: $id,
            $state: $state_type,
            $what: $what_type,
            $host: $host_type,
            $exit: $exit_type,
            $($arg: $type),*
        ) -> $result {
            let (ops, v) = $me.parts($vcpu);
            let answer = ops.$call(v, $state, $what, $host, $exit, $($arg),*);
            $exit.level = v.core().level();
            answer
        })*
    };
}
