//! The words of a backend, a release of KVM and what they are set to; sizes and counts.

use crate::output::usage;
use anyhow::Result;
use vmtape_replay::spec;

/// `NAME[,OPTION=VALUE...]`.
pub fn parse_backend(text: &str) -> Result<(String, Vec<(String, String)>)> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default().to_owned();
    if name.is_empty() {
        return Err(usage(format!("-b {text}: a backend's name is needed (see `vmtape backends`)")));
    }
    let options = parts.map(|part| parse_option(part, "-b", text)).collect::<Result<_>>()?;
    Ok((name, options))
}

/// `RELEASE,+PATCH,-PATCH,PARAMETER=VALUE`, each part optional.
pub fn parse_kvm(text: &str) -> Result<Vec<(String, String)>> {
    let options: Vec<_> = text
        .split(',')
        .map(|part| match part.chars().next() {
            Some('+' | '-') => Ok((part.to_owned(), String::new())),
            Some(_) if part.contains('=') => parse_option(part, "--kvm", text),
            Some(_) => Ok((spec::PROFILE.to_owned(), part.to_owned())),
            None => Err(usage(format!("--kvm {text}: an empty part"))),
        })
        .collect::<Result<_>>()?;
    let mut releases = options.iter().filter(|(name, _)| name == spec::PROFILE).map(|(_, release)| release);
    match (releases.next(), releases.next()) {
        (Some(first), Some(second)) => {
            Err(usage(format!("--kvm {text}: both {first} and {second}: one release is needed")))
        }
        _ => Ok(options),
    }
}

/// Refuses options that want two things: one in `-b` and another one in `--kvm`, say.
pub fn agree(options: &[(String, String)]) -> Result<()> {
    for (n, (name, value)) in options.iter().enumerate() {
        let other = options[..n].iter().find(|(earlier, other)| earlier == name && other != value);
        if let Some((_, other)) = other {
            return Err(usage(format!("{name}={other} and {name}={value}: which of them?")));
        }
        let opposite = match name.split_at_checked(1) {
            Some(("+", patch)) => format!("-{patch}"),
            Some(("-", patch)) => format!("+{patch}"),
            _ => continue,
        };
        if options.iter().any(|(other, _)| *other == opposite) {
            return Err(usage(format!("{name} and {opposite}: which of them?")));
        }
    }
    Ok(())
}

fn parse_option(part: &str, option: &str, text: &str) -> Result<(String, String)> {
    match part.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(usage(format!("{option} {text}: `{part}` is not OPTION=VALUE"))),
    }
}

/// A memory size in QEMU's syntax: MiB without a suffix.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.to_ascii_uppercase() {
        t if t.ends_with('K') => (t.trim_end_matches('K').to_owned(), 10),
        t if t.ends_with('G') => (t.trim_end_matches('G').to_owned(), 30),
        t => (t.trim_end_matches('M').to_owned(), 20),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` is not a size (256M, 1G)"))?;
    match number.checked_mul(1 << shift) {
        Some(size) if size > 0 => Ok(size),
        _ => Err(format!("`{text}` is not a size of memory")),
    }
}

/// `N` or QEMU's `cpus=N`, with sockets and the rest ignored.
pub(super) fn parse_smp(text: &str) -> Result<u32, String> {
    let first = text.split(',').next().unwrap_or_default();
    let digits = first.strip_prefix("cpus=").unwrap_or(first);
    match digits.parse() {
        Ok(count) if (1..=vmtape_machine::MAX_VCPUS).contains(&count) => Ok(count),
        _ => Err(format!("between 1 and {} vCPUs are possible", vmtape_machine::MAX_VCPUS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(options: Vec<(String, String)>) -> Vec<String> {
        options.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
    }

    #[test]
    fn backends_and_profiles() {
        let (name, options) = parse_backend("vmx,ept=0,eptad=1").unwrap();
        assert_eq!((name.as_str(), pairs(options)), ("vmx", vec!["ept=0".into(), "eptad=1".into()]));
        assert!(parse_backend("vmx,ept").is_err());
        let chosen = parse_backend("vmx,ept=0").unwrap().1;
        let both = |text: &str| agree(&[chosen.clone(), parse_kvm(text).unwrap()].concat());
        assert!(both("v6.12,ept=0,+fix").is_ok() && both("ept=1").is_err() && both("+fix,-fix").is_err());
        assert!(parse_backend("").is_err());
        let profile = parse_kvm("v6.12,+fix,-other,ignore_msrs=1").unwrap();
        assert_eq!(pairs(profile), ["kvm=v6.12", "+fix=", "-other=", "ignore_msrs=1"]);
        assert!(parse_kvm("v6.12,").is_err() && parse_kvm("v6.12,v5.9").is_err());
    }

    #[test]
    fn sizes_and_counts() {
        assert_eq!(parse_size("256"), Ok(256 << 20));
        assert_eq!(parse_size("1g"), Ok(1 << 30));
        for bad in ["lots", "0", "", "-1", "99999999999999999999", "9999999999999G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_smp("cpus=2,sockets=1"), Ok(2));
        assert!(parse_smp("0").is_err() && parse_smp("255").is_err());
    }
}
