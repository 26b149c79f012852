//! What sysfs tells of devices on a bus: which link is behind an address, and who drives it.
//!
//! Read [`Sysfs`]: functions over a directory, so that tests lay one out. Names come in order, so that of several
//! links of one device it is always the same that is meant.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Drivers that hand a device to a program; the kernel has no link for it then.
const PAST_THE_KERNEL: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// A sysfs, by the directory it is mounted on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sysfs<'a>(&'a Path);

impl Sysfs<'static> {
    /// The system's.
    pub(super) fn system() -> Self {
        Self(Path::new("/sys"))
    }
}

impl Sysfs<'_> {
    /// The directory of the device at this PCI address.
    pub(super) fn pci(self, address: &str) -> PathBuf {
        self.0.join("bus/pci/devices").join(address)
    }

    /// The directory of the device with this name on the auxiliary bus.
    pub(super) fn auxiliary(self, name: &str) -> PathBuf {
        self.0.join("bus/auxiliary/devices").join(name)
    }

    /// A path below `/sys` as it is in this one.
    pub(super) fn place(self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/sys").unwrap_or(path))
    }
}

/// Whether the device in `directory` is driven by a program and not by the kernel.
///
/// # Errors
/// When nobody drives it.
pub(super) fn is_outside_the_kernel(directory: &Path) -> io::Result<bool> {
    let driver = fs::read_link(directory.join("driver"))?;
    Ok(driver.file_name().is_some_and(|name| PAST_THE_KERNEL.iter().any(|known| name == *known)))
}

/// The first link of the device in `directory`. A virtio device has a directory of its own below the PCI one.
///
/// # Errors
/// When the device has no link, or is not there.
pub(super) fn link_of(directory: &Path) -> io::Result<String> {
    match first_entry(&directory.join("net"), "") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    let virtio = first_entry(directory, "virtio")?;
    first_entry(&directory.join(virtio).join("net"), "")
}

/// The first name in a directory that begins like this.
fn first_entry(directory: &Path, beginning: &str) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.extend(entry?.file_name().into_string().ok().filter(|name| name.starts_with(beginning)));
    }
    let none =
        || io::Error::new(io::ErrorKind::NotFound, format!("no network device in {}", directory.display()));
    names.into_iter().min().ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn lay(root: &Path, directories: &[&str]) {
        directories.iter().for_each(|directory| fs::create_dir_all(root.join(directory)).unwrap());
    }

    #[test]
    fn the_first_link_of_a_device_is_the_one_that_is_meant() {
        let root = tempfile::tempdir().unwrap();
        let sysfs = Sysfs(root.path());
        lay(
            root.path(),
            &[
                "bus/pci/devices/0000:01:00.0/net/ens1f1",
                "bus/pci/devices/0000:01:00.0/net/ens1f0",
                "bus/pci/devices/0000:00:03.0/virtio0/net/eth9",
                "bus/pci/devices/0000:02:00.0",
                "bus/auxiliary/devices/mlx5_core.sf.2/net/sf2",
                "devices/pci0000:00/net/by-path",
            ],
        );
        assert_eq!(link_of(&sysfs.pci("0000:01:00.0")).unwrap(), "ens1f0");
        assert_eq!(link_of(&sysfs.pci("0000:00:03.0")).unwrap(), "eth9");
        assert_eq!(link_of(&sysfs.auxiliary("mlx5_core.sf.2")).unwrap(), "sf2");
        assert_eq!(link_of(&sysfs.place(Path::new("/sys/devices/pci0000:00"))).unwrap(), "by-path");
        for missing in ["0000:02:00.0", "0000:07:00.0"] {
            assert_eq!(link_of(&sysfs.pci(missing)).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }

    #[test]
    fn a_driver_that_goes_past_the_kernel_is_known_by_its_name() {
        let root = tempfile::tempdir().unwrap();
        let sysfs = Sysfs(root.path());
        for (address, driver) in [("0000:01:00.0", "vfio-pci"), ("0000:02:00.0", "mlx5_core")] {
            fs::create_dir_all(sysfs.pci(address)).unwrap();
            symlink(format!("../../../bus/pci/drivers/{driver}"), sysfs.pci(address).join("driver")).unwrap();
        }
        assert!(is_outside_the_kernel(&sysfs.pci("0000:01:00.0")).unwrap());
        assert!(!is_outside_the_kernel(&sysfs.pci("0000:02:00.0")).unwrap());
        assert!(is_outside_the_kernel(&sysfs.pci("0000:03:00.0")).is_err());
    }
}
