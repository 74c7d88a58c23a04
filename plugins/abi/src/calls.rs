//! Reads the declarations of calls in [`contract`](crate::contract).
//!
//! A trait of the contract is written once, as the body of a macro (`backend_calls!`, `host_calls!`, `mmu_calls!`). Everything
//! else about a call follows from it: its place in a table, both sides of the C form, the pass-through of an observer, and
//! the header. `each_call!` reads such a body and gives another macro one entry per call:
//!
//! ```text
//! { [docs] name self accessor [receiver] (argument: type, ...) [result] [what the out-parameter carries, if any] [default] }
//! ```

/// Turns the body of a trait into entries; see the module's text.
#[macro_export]
macro_rules! each_call {
    // All are read.
    ($then:ident ($($fixed:tt)*) [$($done:tt)*]) => { $then! { ($($fixed)*) $($done)* } };

    // The receiver and the arguments of one call.
    (@split $then:ident $fixed:tt [$($done:tt)*] $docs:tt $name:ident
        (&$me:ident $(, $arg:ident: $type:ty)* $(,)?) $result:tt $out:tt $default:tt $($rest:tt)*) => {
        each_call! { $then $fixed [$($done)*
            { $docs $name $me inner [&$me] ($($arg: $type,)*) $result $out $default }
        ] $($rest)* }
    };
    (@split $then:ident $fixed:tt [$($done:tt)*] $docs:tt $name:ident
        (&mut $me:ident $(, $arg:ident: $type:ty)* $(,)?) $result:tt $out:tt $default:tt $($rest:tt)*) => {
        each_call! { $then $fixed [$($done)*
            { $docs $name $me inner_mut [&mut $me] ($($arg: $type,)*) $result $out $default }
        ] $($rest)* }
    };

    // The result of one call, and its default body if it has one.
    ($then:ident $fixed:tt $done:tt $(#[doc = $doc:literal])* fn $name:ident $args:tt
        -> Result<(), Errno>; $($rest:tt)*) => {
        each_call! { @split $then $fixed $done [$($doc)*] $name $args [Result<(), Errno>] [] [] $($rest)* }
    };
    ($then:ident $fixed:tt $done:tt $(#[doc = $doc:literal])* fn $name:ident $args:tt
        -> Result<(), Errno> { $($default:tt)* } $($rest:tt)*) => {
        each_call! {
            @split $then $fixed $done [$($doc)*] $name $args [Result<(), Errno>] [] [{ $($default)* }] $($rest)*
        }
    };
    ($then:ident $fixed:tt $done:tt $(#[doc = $doc:literal])* fn $name:ident $args:tt
        -> $result:ty; $($rest:tt)*) => {
        each_call! { @split $then $fixed $done [$($doc)*] $name $args [$result] [$result] [] $($rest)* }
    };
    ($then:ident $fixed:tt $done:tt $(#[doc = $doc:literal])* fn $name:ident $args:tt
        -> $result:ty { $($default:tt)* } $($rest:tt)*) => {
        each_call! {
            @split $then $fixed $done [$($doc)*] $name $args [$result] [$result] [{ $($default)* }] $($rest)*
        }
    };
    ($then:ident $fixed:tt $done:tt $(#[doc = $doc:literal])* fn $name:ident $args:tt; $($rest:tt)*) => {
        each_call! { @split $then $fixed $done [$($doc)*] $name $args [()] [] [] $($rest)* }
    };
    ($then:ident $fixed:tt $done:tt $(#[doc = $doc:literal])* fn $name:ident $args:tt
        { $($default:tt)* } $($rest:tt)*) => {
        each_call! { @split $then $fixed $done [$($doc)*] $name $args [()] [] [{ $($default)* }] $($rest)* }
    };
}

/// The calls of all sections of a body.
macro_rules! every_section {
    (($then:ident! $($before:tt)*) $($section:ident { $($calls:tt)* })*) => {
        $then! { $($before)* $($($calls)*)* }
    };
}

/// The calls of one section of the backend's. Whoever hands a whole section on, unchanged, need not name its calls:
///
/// ```text
/// backend_sections! { section! (memory each_call! handed_on () []) }
/// ```
#[macro_export]
macro_rules! section {
    ((memory $then:ident! $($before:tt)*) control $control:tt memory { $($calls:tt)* } $($rest:tt)*) => {
        $then! { $($before)* $($calls)* }
    };
    ((state $then:ident! $($before:tt)*) control $control:tt memory $memory:tt vcpu $vcpu:tt
        state { $($calls:tt)* } $($rest:tt)*) => {
        $then! { $($before)* $($calls)* }
    };
    ((silicon $then:ident! $($before:tt)*) control $control:tt memory $memory:tt vcpu $vcpu:tt state $state:tt
        checkpoint $checkpoint:tt cpus $cpus:tt silicon { $($calls:tt)* } $($rest:tt)*) => {
        $then! { $($before)* $($calls)* }
    };
}

/// Makes the trait itself of a body, with provided methods that are no calls of their own.
macro_rules! contract_trait {
    (($(#[$meta:meta])* $name:ident $({ $($helpers:tt)* })?) $($body:tt)*) => {
        $(#[$meta])*
        pub trait $name { $($body)* $($($helpers)*)? }
    };
}

/// The callee's side of a call: raises the arguments, makes the call, and gives back what it wrote.
macro_rules! served {
    ($target:ident.$call:ident($($arg:ident: $type:ty),*) -> [$($result:tt)*] [$($out:ty)?], $slot:ident, $peer:ident) => {{
        $(let mut $arg = match <$type as Argument>::raise($arg, $peer) {
            Ok(raised) => raised,
            Err(status) => return status,
        };)*
        let _out = ();
        $(let _out: <$out as Returned>::Out = $slot;)?
        let result = $target.$call($(<$type as Argument>::lend(&raw mut $arg)),*);
        $(<$type as Argument>::give_back(&mut $arg);)*
        <$($result)* as Returned>::put(result, _out, $peer)
    }};
}
