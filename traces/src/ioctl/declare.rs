//! The macro that makes everything out of one declaration of an ioctl. Its clauses:
//!
//! - `name`: the kernel's name, or another format string over the fields;
//! - `effect`: whether it changes the VM ([`CHANGES`](super::CHANGES)) or only asks ([`ASKS`](super::ASKS));
//! - `option`, `help`: the command line's option, the word for its value, and what `--help` says;
//! - `args`: what it is called with, each with the method of [`Spelling`](super::Spelling) that reads it;
//! - `script`: arguments that only a script has, from which `made` is worked out when the moment has come;
//! - `asks`: the arguments as a script's text has them;
//! - `made`, `called`: arguments that only the call has, and the text of all that the call has (else as in `asks`);
//! - `gives`: results, and their text where the call succeeded. `result` is one of them: zero or a negative errno.

macro_rules! ioctls {
    ($(
        $(#[doc = $doc:literal])+
        $number:literal => $variant:ident {
            name: $name:literal,
            effect: $effect:ident,
            option: $option:literal = $value:literal,
            help: $help:literal,
            args: { $($arg:ident: $arg_type:ty = $reader:ident($($reader_arg:expr)?)),* $(,)? },
            $(script: { $($given:ident: $given_type:ty = $given_reader:ident($($given_arg:expr)?)),* $(,)? },)?
            asks: $asks:literal,
            $(made: { $($made:ident: $made_type:ty),* $(,)? },
            called: $called:literal,)?
            gives: { $($result:ident: $result_type:ty),* $(,)? } $gives:literal,
        }
    )*) => {
        /// An ioctl as a script has it: its arguments.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum Action {
            $($(#[doc = $doc])+ $variant { $($arg: $arg_type,)* $($($given: $given_type),*)? },)*
        }

        /// An ioctl as it was made: its arguments and results.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum Control {
            $($(#[doc = $doc])+ $variant { $($arg: $arg_type,)* $($($made: $made_type,)*)? $($result: $result_type),* },)*
        }

        /// Every ioctl's option, in the order of the declarations.
        pub const IOCTLS: &[Ioctl] = &[$(Ioctl {
            option: $option,
            value: $value,
            help: $help,
            parse: |spelling| {
                let _ = &spelling;
                Ok(Action::$variant {
                    $($arg: spelling.$reader($($reader_arg)?)?,)*
                    $($($given: spelling.$given_reader($($given_arg)?)?,)*)?
                })
            },
        }),*];

        impl Action {
            /// The vCPU that it is an ioctl of.
            pub fn vcpu(&self) -> Option<u32> {
                match self {
                    $(Self::$variant { $($arg,)* .. } => {
                        let numbers: &[(&str, Option<u32>)] = &[$((stringify!($arg), Shown::number($arg))),*];
                        numbers.iter().find(|(name, _)| *name == "vcpu").and_then(|(_, number)| *number)
                    })*
                }
            }

            /// The call that it stands for, less what is worked out at its moment and its results.
            pub fn control(&self) -> Control {
                match self {
                    $(Self::$variant { $($arg,)* .. } => Control::$variant {
                        $($arg: $arg.clone(),)*
                        $($($made: Default::default(),)*)?
                        $($result: Default::default()),*
                    },)*
                }
            }
        }

        impl fmt::Display for Action {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant { $($arg,)* $($($given),*)? } => {
                        $(let $arg = Shown::shown($arg); let _ = &$arg;)*
                        $($(let $given = Shown::shown($given);)*)?
                        words(f, [format_args!($name), format_args!($asks)])
                    })*
                }
            }
        }

        impl Control {
            /// The kernel's name.
            pub fn name(&self) -> String {
                match self {
                    $(Self::$variant { $($arg,)* .. } => {
                        $(let _ = $arg;)*
                        format!($name)
                    })*
                }
            }

            /// Whether it changes the VM; otherwise it only asks.
            pub fn is_change(&self) -> bool {
                match self {
                    $(Self::$variant { .. } => $effect,)*
                }
            }

            /// What the call returned.
            pub fn result(&self) -> i64 {
                match *self {
                    $(Self::$variant { result, .. } => result.into(),)*
                }
            }

            /// The words and bytes of an event.
            pub(crate) fn pack(&self, to: &mut Packed<'_>) {
                match self {
                    $(Self::$variant { $($arg,)* $($($made,)*)? $($result),* } => {
                        $(Field::pack($arg, to);)*
                        $($(Field::pack($made, to);)*)?
                        $(Field::pack($result, to);)*
                        to.finish($number);
                    })*
                }
            }

            /// The inverse of [`Control::pack`].
            pub(crate) fn unpack(from: &mut Unpacked<'_>) -> Result<Self, &'static str> {
                Ok(match from.number {
                    $($number => Self::$variant {
                        $($arg: Field::unpack(from)?,)*
                        $($($made: Field::unpack(from)?,)*)?
                        $($result: Field::unpack(from)?),*
                    },)*
                    _ => return Err("unknown control"),
                })
            }
        }

        impl fmt::Display for Control {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant { $($arg,)* $($($made,)*)? $($result),* } => {
                        $(let $arg = Shown::shown($arg); let _ = &$arg;)*
                        $($(let $made = Shown::shown($made); let _ = &$made;)*)?
                        words(f, [format_args!($name), ioctls!(@called $asks $(, $called)?)])?;
                        if self.result() < 0 {
                            return write!(f, ": {}", Errno(self.result()));
                        }
                        $(let $result = Shown::shown($result); let _ = &$result;)*
                        f.write_str(": ")?;
                        write!(f, $gives)
                    })*
                }
            }
        }
    };
    (@called $asks:literal) => { format_args!($asks) };
    (@called $asks:literal, $called:literal) => { format_args!($called) };
}
