//! Hosts that a guest may be on: a passport, and the backend and options that stand for its KVM.

use crate::{
    commands::replay::Plugins,
    machine_args::{create, parse_kvm, wrong_host},
    output::usage,
};
use anyhow::{Context, Result};
use std::rc::Rc;
use vmtape_arch::{cpuid::CpuidEntry, host::Vendor};
use vmtape_backends::LoadedPlugin;
use vmtape_machine::{MachineSpec, Passport, hosts};
use vmtape_replay::{evidence::Target, spec};

/// KVM_CAP_SMALLER_MAXPHYADDR.
const SMALLER_MAXPHYADDR: u32 = 185;
/// The backends that virtualize as KVM's own defaults do.
const DEFAULT_BACKENDS: [(Vendor, &str); 2] = [(Vendor::INTEL, "vmx"), (Vendor::AMD, "svm-npt")];

/// A host with everything that a machine on it needs.
#[derive(Clone, Debug)]
pub struct KnownHost {
    /// As it was asked for.
    pub text: String,
    pub passport: Passport,
    pub backend: String,
    /// What the user or the passport says of its KVM; `None`: nothing.
    pub options: Option<Vec<(String, String)>>,
}

impl KnownHost {
    /// `HOST[,BACKEND][,OPTION...]` or `BACKEND[,OPTION...],host=HOST`. HOST is a name, VENDOR-BITS or a passport; options are
    /// those of `--kvm` and of the backend.
    pub fn parse(text: &str) -> Result<Self> {
        let (mut host, mut backend, mut words) = (None, None, Vec::new());
        for word in text.split(',') {
            match word.split_once('=') {
                Some(("host", name)) => host = Some(name),
                Some(("backend", name)) => backend = Some(name),
                Some(("kvm", profile)) => words.push(profile),
                Some(_) => words.push(word),
                None if word.starts_with(['+', '-']) || is_release(word) => words.push(word),
                None if host.is_none() && hosts::passport(word).is_ok() => host = Some(word),
                None if backend.is_none() => backend = Some(word),
                None => return Err(usage(format!("{text}: `{word}` is neither a host nor an option"))),
            }
        }
        let host = host.or_else(|| backend.take()).unwrap_or_default();
        let passport = hosts::passport(host).map_err(|error| wrong_host(text, error))?;
        let mut options = passport.kvm.as_deref().map(parse_kvm).transpose()?;
        if !words.is_empty() {
            options.get_or_insert_default().extend(parse_kvm(&words.join(","))?);
        }
        let default = DEFAULT_BACKENDS.iter().find(|(vendor, _)| *vendor == passport.silicon.vendor);
        let backend = backend.or(passport.backend.as_deref()).or(default.map(|(_, name)| *name));
        let backend = backend.with_context(|| format!("{text}: no backend is known for this vendor"))?;
        Ok(Self { text: text.to_owned(), backend: backend.to_owned(), options, passport })
    }

    /// The options of a machine here. Where nothing is known of the host's KVM it is taken to be like the other one.
    fn options(&self, like: Option<&MachineSpec>) -> Vec<(String, String)> {
        match (&self.options, like) {
            (None, Some(like)) if like.backend == self.backend => like.options.clone(),
            (None, Some(like)) => profile(like),
            (Some(own), Some(like)) if !own.iter().any(|(key, _)| key == spec::PROFILE) => {
                profile(like).into_iter().chain(own.iter().cloned()).collect()
            }
            (own, _) => own.clone().unwrap_or_default(),
        }
    }

    /// The host for the guest of a trace, of which nothing but its exits is known.
    pub fn target(&self, plugins: &Plugins, assigned_device: bool) -> Result<Target> {
        let plugin = plugins.get(&self.backend)?;
        let vm = create(&plugin, self.passport.silicon, &self.options(None))
            .with_context(|| self.passport.name.clone())?;
        let options = vm.resolved();
        let profile = options.iter().find(|(key, _)| key == spec::PROFILE);
        let profile = profile.map_or(String::new(), |(_, value)| format!(", {value}"));
        let machine = format!("{} on {}{profile}", self.backend, self.passport.name);
        Ok(Target::new(self.passport.clone(), machine, &*vm, assigned_device))
    }

    /// The host, its KVM loaded. `like`: the machine that it is compared with.
    pub fn load(&self, plugins: &Plugins, like: Option<&MachineSpec>) -> Result<LoadedHost> {
        let plugin = plugins.get(&self.backend)?;
        let vm = create(&plugin, self.passport.silicon, &self.options(like))
            .with_context(|| self.passport.name.clone())?;
        Ok(LoadedHost {
            supported: vm.supported_cpuid(&self.passport.cpuid()),
            hides_width: vm.check_extension(SMALLER_MAXPHYADDR) != 0,
            options: vm.resolved(),
            plugin,
        })
    }
}

fn profile(machine: &MachineSpec) -> Vec<(String, String)> {
    machine.options.iter().filter(|(key, _)| key == spec::PROFILE).cloned().collect()
}

/// `v6.12`, `latest`, `v1-series`.
fn is_release(word: &str) -> bool {
    word == "latest"
        || word.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// A host, and what its KVM says.
pub struct LoadedHost {
    pub supported: Vec<CpuidEntry>,
    pub hides_width: bool,
    pub options: Vec<(String, String)>,
    pub plugin: Rc<LoadedPlugin>,
}

impl LoadedHost {
    /// The same guest here: everything of it but its host.
    pub fn machine(&self, host: &KnownHost, guest: &MachineSpec) -> MachineSpec {
        let mut silicon = host.passport.silicon;
        silicon.backing_shift = guest.silicon.backing_shift;
        MachineSpec {
            silicon,
            host: host.passport.name.clone(),
            backend: host.backend.clone(),
            options: self.options.clone(),
            ..guest.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, String, Vec<String>) {
        let host = KnownHost::parse(text).expect(text);
        let options = host.options.unwrap_or_default();
        let options = options.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
        (host.passport.name, host.backend, options)
    }

    #[test]
    fn hosts_come_with_backends_and_options_in_any_order() {
        let plain = |name: &str, backend: &str| (name.to_owned(), backend.to_owned(), Vec::new());
        assert_eq!(parsed("intel-39"), plain("intel-39", "vmx"));
        assert_eq!(parsed("amd-48"), plain("amd-48", "svm-npt"));
        assert_eq!(parsed("amd-48,svm"), plain("amd-48", "svm"));
        assert_eq!(parsed("svm,host=amd-44"), plain("amd-44", "svm"));
        let (_, _, options) = parsed("intel-52,v6.1,allow_smaller_maxphyaddr=on,+guest-phys-bits");
        assert_eq!(options, ["kvm=v6.1", "allow_smaller_maxphyaddr=on", "+guest-phys-bits="]);
        assert!(KnownHost::parse("nowhere").is_err() && KnownHost::parse("intel-39,vmx,twice").is_err());
    }
}
