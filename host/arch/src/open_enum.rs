//! Numbers that come from hardware or from a file: a named newtype, so that an unknown value stays legal and printable.

/// Declares a transparent newtype with named constants and a `name()` that gives the manual's word.
#[macro_export]
macro_rules! open_enum {
    ($(#[$meta:meta])* $vis:vis struct $name:ident($int:ty) { $($(#[$cmeta:meta])* $konst:ident = $value:expr => $text:expr,)* }) => {
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[derive($crate::serde::Serialize, $crate::serde::Deserialize)]
        #[serde(crate = "vmtape_arch::serde")]
        $vis struct $name(pub $int);

        impl $name {
            $($(#[$cmeta])* pub const $konst: Self = Self($value);)*

            /// Every named value, in declaration order.
            pub const NAMED: &'static [(Self, &'static str)] = &[$((Self::$konst, $text)),*];

            /// The manual's or the kernel's word for this value, if it has one.
            pub fn name(self) -> Option<&'static str> {
                Self::NAMED.iter().find(|(value, _)| *value == self).map(|(_, text)| *text)
            }

            /// The value with this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::NAMED.iter().find(|(_, text)| *text == name).map(|(value, _)| *value)
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result { core::fmt::Display::fmt(self, f) }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(text) => f.pad(text),
                    None => write!(f, "{:#x}", self.0),
                }
            }
        }
    };
}
