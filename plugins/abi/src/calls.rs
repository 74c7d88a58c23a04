//! Reads the declarations of calls in [`contract`](crate::contract).
//!
//! A trait of the contract is written once, as the body of a macro (`backend_calls!`, `host_calls!`, `mmu_calls!`). Everything
//! else about a call follows from it: its place in a table, both sides of the C form, the pass-through of an observer, and
//! the header. `each_call!` reads such a body and gives another macro one entry per call:
//!
//! ```text
//! { [docs] name self accessor [receiver] (argument: type, ...) [result] [what the out-parameter carries, if any] }
//! ```

/// Turns the body of a trait into entries; see the module's text.
macro_rules! each_call {
    // All are read.
    ($then:ident ($($fixed:tt)*) [$($done:tt)*]) => { $then! { ($($fixed)*) $($done)* } };

    // The receiver and the arguments of one call.
    (@split $then:ident $fixed:tt [$($done:tt)*] $docs:tt $name:ident
        (&$me:ident $(, $arg:ident: $type:ty)* $(,)?) $result:tt $out:tt $($rest:tt)*) => {
        each_call! { $then $fixed [$($done)*
            { $docs $name $me inner [&$me] ($($arg: $type,)*) $result $out }
        ] $($rest)* }
    };
    (@split $then:ident $fixed:tt [$($done:tt)*] $docs:tt $name:ident
        (&mut $me:ident $(, $arg:ident: $type:ty)* $(,)?) $result:tt $out:tt $($rest:tt)*) => {
        each_call! { $then $fixed [$($done)*
            { $docs $name $me inner_mut [&mut $me] ($($arg: $type,)*) $result $out }
        ] $($rest)* }
    };

    // The result of one call; `$end` is a semicolon or a default body.
    ($then:ident $fixed:tt $done:tt $(#[doc = $doc:literal])* fn $name:ident $args:tt
        -> Result<(), Errno> $end:tt $($rest:tt)*) => {
        each_call! { @split $then $fixed $done [$($doc)*] $name $args [Result<(), Errno>] [] $($rest)* }
    };
    ($then:ident $fixed:tt $done:tt $(#[doc = $doc:literal])* fn $name:ident $args:tt
        -> $result:ty; $($rest:tt)*) => {
        each_call! { @split $then $fixed $done [$($doc)*] $name $args [$result] [$result] $($rest)* }
    };
    ($then:ident $fixed:tt $done:tt $(#[doc = $doc:literal])* fn $name:ident $args:tt
        -> $result:ty { $($default:tt)* } $($rest:tt)*) => {
        each_call! { @split $then $fixed $done [$($doc)*] $name $args [$result] [$result] $($rest)* }
    };
    ($then:ident $fixed:tt $done:tt $(#[doc = $doc:literal])* fn $name:ident $args:tt
        $end:tt $($rest:tt)*) => {
        each_call! { @split $then $fixed $done [$($doc)*] $name $args [()] [] $($rest)* }
    };
}

/// Makes the trait itself of a body, with provided methods that are no calls of their own.
macro_rules! contract_trait {
    (($(#[$meta:meta])* $name:ident $({ $($helpers:tt)* })?) $($body:tt)*) => {
        $(#[$meta])*
        pub trait $name { $($body)* $($($helpers)*)? }
    };
}
