//! `tuning`: sysctls of the pod, and hardware address, MTU and modes of its interface.
//!
//! Read [`Tuning`] first, then `attributes` (what of a link can be changed, and changed back) and `backup` (what
//! it was before, in a file that the reference plugin reads and writes too). Beside them: `config` (what is asked
//! for), `sysctls` (which file a key means), `allow_list` and `pattern` (which keys an administrator allows).
//!
//! What stays true: everything is checked before anything is changed; a change is noted on disk before it is
//! made; an ADD that fails puts back what it changed; DEL changes back nothing but the very link that ADD
//! changed, and removes the note whether that link is still there or not. Sysctls end with the pod's namespace
//! and are not put back by DEL.
//! Sources: the reference plugin's documented keys and observed behaviour; CNI specification 1.1.0, section 2.

mod allow_list;
mod attributes;
mod backup;
mod config;
mod pattern;
mod sysctls;

use cni::{AddResult, Code, Error, Plugin, Request};
use kernel::link::Link;

use self::attributes::Attributes;
use self::backup::{Backup, Place};
use self::config::Settings;
use self::sysctls::Sysctls;
use crate::fault::{Failures, fault};
use crate::interface::pod::Pod;

/// The plugin.
#[derive(Debug)]
pub struct Tuning;

impl Plugin for Tuning {
    fn name(&self) -> &'static str {
        "tuning"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let settings = Settings::of(request)?;
        let result = super::previous(request)?;
        let mut pod = Pod::open(request.netns()?)?;
        let link = found(&mut pod, &request.ifname)?;
        let sysctls = Sysctls::locate(&pod, &settings.sysctls, &request.ifname)?;
        let place = Place::of(request, &settings.data_dir);
        let earlier =
            if settings.link.is_empty() { None } else { Some(note(&pod, &link, &place, &settings)?) };
        let done = sysctls.write(&pod).and_then(|()| {
            let changed = settings.link.beyond(&Attributes::of(&link));
            changed.apply(pod.socket(), link.index).map_err(|(error, _)| error)
        });
        match done {
            Ok(()) => Ok(settings.link.shown_in(result, &request.ifname)),
            Err(error) => Err(back(&mut pod, &link, &settings, (&sysctls, &place, earlier), error)),
        }
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let place = Place::of(request, &config::data_dir(&request.config));
        let Some(backup) = place.read()? else { return place.remove() };
        let mut failures = Failures::default();
        match restore(request, &backup) {
            Err((error, true)) => return Err(error),
            // What the kernel will never take again must not keep the pod from going for ever.
            done => failures.note(done.map_err(|(error, _)| error)),
        };
        failures.note(place.remove());
        failures.into_result()
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let settings = Settings::of(request)?;
        super::previous(request)?;
        let mut pod = Pod::open(request.netns()?)?;
        let link = found(&mut pod, &request.ifname)?;
        Sysctls::locate(&pod, &settings.sysctls, &request.ifname)?.check()?;
        settings.link.check(&link)
    }

    /// Removes the notes about attachments of this network that are not valid, and those of the reference, which do
    /// not say of which network they are, if nobody alive can have made them.
    fn gc(&self, request: &Request) -> Result<(), Error> {
        let directory = config::data_dir(&request.config);
        let valid = request.valid_attachments();
        let mut failures = Failures::default();
        failures.note(backup::collect(&directory, &request.config.name, valid));
        failures.note(backup::collect_unclaimed(&directory, request));
        failures.into_result()
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let ready = || {
            let settings = Settings::of(request)?;
            if settings.link.is_empty() { Ok(()) } else { backup::may_write(&settings.data_dir) }
        };
        ready().map_err(|error| Error { code: Code::NOT_READY, ..error })
    }
}

fn found(pod: &mut Pod, name: &str) -> Result<Link, Error> {
    pod.find(name)?.ok_or_else(|| Error::kernel(format!("there is no interface {name} in the pod")))
}

/// Writes down what is about to be changed. Returns what was written down before: another `tuning` of the same
/// chain has changed the link already, and what *it* found is what DEL has to put back.
fn note(pod: &Pod, link: &Link, place: &Place, settings: &Settings) -> Result<Option<Backup>, Error> {
    let subject = backup::Subject::of(pod, link)?;
    let earlier = place.read()?.filter(|earlier| earlier.subject == Some(subject));
    let found = Attributes::of(link).only(&settings.link);
    let original = earlier.as_ref().map_or_else(|| found.clone(), |earlier| earlier.link.clone().or(&found));
    place.write(&Backup { link: original, subject: Some(subject) })?;
    Ok(earlier)
}

/// Undoes an ADD that failed, last step first.
fn back(
    pod: &mut Pod,
    link: &Link,
    settings: &Settings,
    (sysctls, place, earlier): (&Sysctls, &Place, Option<Option<Backup>>),
    cause: Error,
) -> Error {
    let mut failures = Failures::default();
    failures.note::<()>(Err(cause));
    let found = Attributes::of(link).only(&settings.link);
    let now =
        pod.find(&link.name).ok().flatten().map_or_else(Attributes::default, |now| Attributes::of(&now));
    let changed = found.beyond(&now).apply(pod.socket(), link.index).map_err(|(error, _)| error);
    let is_back = failures.note(changed).is_some();
    failures.note(sysctls.put_back(pod));
    // What could not be put back stays written down for DEL.
    match earlier.filter(|_| is_back) {
        Some(None) => drop(failures.note(place.remove())),
        Some(Some(earlier)) => drop(failures.note(place.write(&earlier))),
        None => {}
    }
    failures.into_result().err().unwrap_or_else(|| Error::internal("an error was lost"))
}

/// Gives the link back what it had. That the pod or the link is gone, or another one, is a success. The error
/// says whether another attempt may do better.
fn restore(request: &Request, backup: &Backup) -> Result<(), (Error, bool)> {
    let Some(mut pod) = Pod::open_if_there(request.netns.as_deref()).map_err(|error| (error, true))? else {
        return Ok(());
    };
    let Some(link) = pod.find(&request.ifname).map_err(|error| (error, true))? else { return Ok(()) };
    let subject = backup::Subject::of(&pod, &link).map_err(|error| (error, true))?;
    if backup.subject.is_some_and(|noted| noted != subject) {
        return Ok(());
    }
    backup.link.beyond(&Attributes::of(&link)).apply(pod.socket(), link.index)
}

/// A failed file operation.
fn file_error(tried: &str, path: &std::path::Path, cause: &std::io::Error) -> Error {
    Error::io(format!("{tried} {}: {cause}", path.display()))
}

/// The kernel's refusal with what was being done.
fn refused(what: &str, error: kernel::Error) -> Error {
    fault(error).context(what)
}
