//! How keys are declared: once, with type, default, example, whether a running service takes a change, and documentation.

use super::value::{Raw, Value};

/// The default of a key that must be given.
const REQUIRED: &str = "required";

/// The default of a key that may be left out and then has no value.
pub(super) const UNSET: &str = "unset";

/// A key of `device.toml`.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted path.
    pub path: &'static str,
    /// What it does, with the lines as they stand in the source.
    pub doc: &'static str,
    /// The values that it takes, as the end of a sentence.
    pub expected: &'static str,
    /// The default as TOML, or `required` or `unset`.
    pub default: &'static str,
    /// A sensible value, as TOML.
    pub example: &'static str,
    /// Whether a running service takes a change over without a restart.
    pub reloadable: bool,
    pub(super) accepts: fn(&Raw) -> bool,
}

impl Key {
    /// Whether it must be given.
    pub fn is_required(&self) -> bool {
        self.default == REQUIRED
    }

    /// Whether it has no value unless given.
    pub fn is_unset(&self) -> bool {
        self.default == UNSET
    }

    /// The last part of its path, as it stands in its section.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }
}

/// A table of `device.toml`.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// Dotted path; empty for the top.
    pub path: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
}

pub(super) fn accepts<T: Value>(raw: &Raw) -> bool {
    T::read(raw).is_some()
}

/// Declares a section: `section!(PATH Name { field: type = default, example, when; … } sections { field: Name; … })`, with `when`
/// either `now` or `restart`. Documentation, example file, reading and comparison all come from it.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $path:tt $name:ident {
            $($(#[doc = $doc:literal])+ $field:ident: $kind:ty = $default:tt, $example:tt, $when:ident;)+
        }
        sections { $($(#[doc = $sub_doc:literal])+ $sub:ident: $sub_kind:ident;)* }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $kind,)+
            $($(#[doc = $sub_doc])+ pub $sub: $sub_kind,)*
        }

        impl $name {
            const SECTION: Section = Section {
                path: $path,
                doc: concat!($($about, "\n"),+),
                keys: &[$(Key {
                    path: section!(@path $path $field),
                    doc: concat!($($doc, "\n"),+),
                    expected: <$kind as Value>::EXPECTED,
                    default: stringify!($default),
                    example: stringify!($example),
                    reloadable: section!(@when $when),
                    accepts: accepts::<$kind>,
                }),+],
            };

            pub(super) fn sections(all: &mut Vec<Section>) {
                all.push(Self::SECTION);
                $($sub_kind::sections(all);)*
            }

            pub(super) fn take(layers: &mut Layers) -> Result<Self, ConfigError> {
                let mut keys = Self::SECTION.keys.iter();
                let mut next = || keys.next().unwrap_or(&Self::SECTION.keys[0]);
                Ok(Self {
                    $($field: layers.take(next())?,)+
                    $($sub: $sub_kind::take(layers)?,)*
                })
            }

            /// Takes over the values that need no restart.
            pub(super) fn reload(&mut self, new: &Self) {
                $(if section!(@when $when) {
                    self.$field.clone_from(&new.$field);
                })+
                $(self.$sub.reload(&new.$sub);)*
            }

            /// The keys whose values differ.
            pub(super) fn differing(&self, other: &Self, all: &mut Vec<&'static Key>) {
                let same = [$(self.$field == other.$field),+];
                all.extend(Self::SECTION.keys.iter().zip(same).filter_map(|(key, same)| (!same).then_some(key)));
                $(self.$sub.differing(&other.$sub, all);)*
            }
        }
    };
    (@path "" $field:ident) => { stringify!($field) };
    (@path $path:tt $field:ident) => { concat!($path, ".", stringify!($field)) };
    (@when now) => { true };
    (@when restart) => { false };
}

pub(super) use section;
