//! What a compiler must make of a structure that crosses the ABI.

/// Asserts the size of a structure, and where some of its fields stand.
#[macro_export]
macro_rules! layout {
    ($type:ty: $size:literal $(, $field:ident: $at:literal)* $(,)?) => {
        const _: () = {
            assert!(::core::mem::size_of::<$type>() == $size);
            $(assert!(::core::mem::offset_of!($type, $field) == $at);)*
        };
    };
}
