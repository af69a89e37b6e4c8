//! `cargo xtask dist`: the static binary as a Debian package and a tarball, with their checksums.

use std::env::consts::ARCH;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hawser_rig::process::told;

use crate::hosts::target;
use crate::step::{cargo, run as shown};

/// Builds and packs, and returns the path of the package.
///
/// # Errors
/// The build fails, a program is missing, or a file cannot be written.
pub(crate) fn run(root: &Path, debug_binary: bool) -> Result<PathBuf> {
    let binary = if debug_binary { debug(root)? } else { release(root)? };
    let out = target(root).join("dist");
    fs::create_dir_all(&out)?;
    let epoch = committed(root)?;
    let package = package(root, &binary, &out, &epoch, debug_binary)?;
    let mut made = vec![&package];
    let tarball = if debug_binary { None } else { Some(tarball(root, &binary, &out, &epoch)?) };
    made.extend(&tarball);
    let sums = sums(&out, &made)?;
    for path in made {
        println!("{} ({} KiB)", path.display(), fs::metadata(path)?.len() / 1024);
    }
    print!("{sums}");
    Ok(package)
}

/// What tests install: it is there already, and as dynamic as the host they run on.
fn debug(root: &Path) -> Result<PathBuf> {
    shown(&mut cargo(root, &["build", "--bin", "hawser"]))?;
    Ok(target(root).join("debug/hawser"))
}

/// What ships: no library of the host's is needed, so one binary does for every distribution.
///
/// # Errors
/// The build fails, or its result needs a library.
pub(crate) fn release(root: &Path) -> Result<PathBuf> {
    let triple = format!("{ARCH}-unknown-linux-gnu");
    let mut build =
        cargo(root, &["build", "--bin", "hawser", "--profile", "dist", "--target", &triple]);
    // Flags beside a --target are the target's alone: build scripts and macros stay dynamic.
    shown(build.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let binary = target(root).join(triple).join("dist/hawser");
    let mut linked = Command::new("ldd");
    linked.arg(&binary);
    let linked = told(linked, COMMAND)?;
    ensure!(linked.contains("statically linked"), "{} is not static: {linked}", binary.display());
    let is_planted = fs::read(&binary)?.windows(PLANTED.len()).any(|octets| octets == PLANTED);
    ensure!(!is_planted, "{} has the tests' bugs on purpose in it", binary.display());
    Ok(binary)
}

/// When the last commit was made: the same sources give the same packages.
fn committed(root: &Path) -> Result<String> {
    let mut log = Command::new("git");
    log.args(["log", "-1", "--format=%ct"]).current_dir(root);
    Ok(told(log, COMMAND)?.trim().to_owned())
}

/// One file of the package or tarball: where it is taken from, where it goes, its mode.
type Item<'a> = (&'a str, &'a str, u32);

/// What asks for a bug on purpose, in builds that have any.
const PLANTED: &[u8] = b"HAWSER_PLANTED_BUG";

/// What the package puts onto a host, beside the binary.
const INSTALLED: [Item<'_>; 10] = [
    ("systemd/hawser-agent.service", "usr/lib/systemd/system/hawser-agent.service", 0o644),
    ("systemd/hawser-server.service", "usr/lib/systemd/system/hawser-server.service", 0o644),
    ("systemd/hawser.sysusers", "usr/lib/sysusers.d/hawser.conf", 0o644),
    ("systemd/hawser.tmpfiles", "usr/lib/tmpfiles.d/hawser.conf", 0o644),
    ("systemd/hawser.default", "etc/default/hawser", 0o644),
    ("systemd/deb/copyright", "usr/share/doc/hawser/copyright", 0o644),
    ("docs/vm.md", "usr/share/doc/hawser/vm.md", 0o644),
    ("docs/dns.md", "usr/share/doc/hawser/dns.md", 0o644),
    ("docs/configuration.md", "usr/share/doc/hawser/configuration.md", 0o644),
    ("CHANGELOG.md", "usr/share/doc/hawser/changelog", 0o644),
];

/// What tells dpkg how to install it.
const CONTROL: [Item<'_>; 4] = [
    ("systemd/deb/conffiles", "DEBIAN/conffiles", 0o644),
    ("systemd/deb/postinst", "DEBIAN/postinst", 0o755),
    ("systemd/deb/prerm", "DEBIAN/prerm", 0o755),
    ("systemd/deb/postrm", "DEBIAN/postrm", 0o755),
];

/// What the tarball holds, beside the binary.
const PACKED: [Item<'_>; 6] = [
    ("LICENSE", "LICENSE", 0o644),
    ("CHANGELOG.md", "CHANGELOG.md", 0o644),
    ("systemd/hawser-agent.service", "systemd/hawser-agent.service", 0o644),
    ("systemd/hawser-server.service", "systemd/hawser-server.service", 0o644),
    ("systemd/hawser.sysusers", "systemd/hawser.sysusers", 0o644),
    ("systemd/hawser.tmpfiles", "systemd/hawser.tmpfiles", 0o644),
];

fn package(root: &Path, binary: &Path, out: &Path, epoch: &str, fast: bool) -> Result<PathBuf> {
    let architecture = debian_architecture()?;
    let tree = fresh(&out.join("package"))?;
    lay(binary, &tree.join("usr/bin/hawser"), 0o755)?;
    for (from, to, mode) in INSTALLED.iter().chain(&CONTROL) {
        lay(&root.join(from), &tree.join(to), *mode)?;
    }
    shown(Command::new("gzip").args(["-9n"]).arg(tree.join("usr/share/doc/hawser/changelog")))?;
    describe(binary, &tree.join("usr/share"), out)?;
    let mut size = Command::new("du");
    size.args(["-sk", "--apparent-size", "--exclude=DEBIAN"]).arg(&tree);
    let size = told(size, COMMAND)?;
    let size = size.split_whitespace().next().unwrap_or("0");
    let control = fs::read_to_string(root.join("systemd/deb/control"))?
        .replace("@VERSION@", VERSION)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@SIZE@", size);
    fs::write(tree.join("DEBIAN/control"), control)?;
    let mut digests = Command::new("sh");
    digests.args(["-c", "find etc usr -type f | LC_ALL=C sort | xargs md5sum"]).current_dir(&tree);
    fs::write(tree.join("DEBIAN/md5sums"), told(digests, COMMAND)?)?;

    let path = out.join(format!("hawser_{VERSION}_{architecture}.deb"));
    let compression: &[&str] = if fast { &["-Zgzip", "-z1"] } else { &["-Zxz"] };
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group"]).args(compression).arg("--build").args([&tree, &path]);
    shown(build.env("SOURCE_DATE_EPOCH", epoch))?;
    fs::remove_dir_all(&tree)?;
    Ok(path)
}

/// Lays what the binary says of its own commands: manual pages, and completions for shells.
fn describe(binary: &Path, share: &Path, out: &Path) -> Result<()> {
    let made = fresh(&out.join("described"))?;
    shown(Command::new(binary).arg("man").arg(&made))?;
    let mut pages: Vec<PathBuf> =
        fs::read_dir(&made)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    pages.sort();
    for page in pages {
        shown(Command::new("gzip").arg("-9n").arg(&page))?;
        let packed = page.with_extension("1.gz");
        let name = packed.file_name().context("a page without a name")?;
        lay(&packed, &share.join("man/man1").join(name), 0o644)?;
    }
    for (shell, to) in COMPLETIONS {
        let mut print = Command::new(binary);
        print.args(["completion", shell]);
        let script = made.join(shell);
        fs::write(&script, told(print, COMMAND)?)?;
        lay(&script, &share.join(to), 0o644)?;
    }
    fs::remove_dir_all(&made)?;
    Ok(())
}

/// Where Debian's shells look for completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/hawser"),
    ("zsh", "zsh/vendor-completions/_hawser"),
    ("fish", "fish/vendor_completions.d/hawser.fish"),
];

fn tarball(root: &Path, binary: &Path, out: &Path, epoch: &str) -> Result<PathBuf> {
    let name = format!("hawser-{VERSION}-linux-{ARCH}");
    let tree = fresh(&out.join(&name))?;
    lay(binary, &tree.join("hawser"), 0o755)?;
    for (from, to, mode) in PACKED {
        lay(&root.join(from), &tree.join(to), mode)?;
    }
    describe(binary, &tree.join("share"), out)?;
    let path = out.join(format!("{name}.tar.gz"));
    let mut pack = Command::new("tar");
    pack.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
        .arg(format!("--mtime=@{epoch}"))
        .args(["--use-compress-program", "gzip -n", "--create", "--file"])
        .arg(&path)
        .arg("--directory")
        .args([out, Path::new(&name)]);
    shown(&mut pack)?;
    fs::remove_dir_all(&tree)?;
    Ok(path)
}

fn sums(out: &Path, files: &[&PathBuf]) -> Result<String> {
    let mut sum = Command::new("sha256sum");
    sum.args(files.iter().filter_map(|path| path.file_name())).current_dir(out);
    let sums = told(sum, COMMAND)?;
    fs::write(out.join("SHA256SUMS"), &sums)?;
    Ok(sums)
}

/// An empty folder with a mode that does not follow from the umask.
fn fresh(folder: &Path) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    Ok(folder.to_owned())
}

/// Copies one file to its place, with every folder above it open to all.
fn lay(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let folder = to.parent().context("a file without a folder")?;
    shown(Command::new("install").args(["-d", "-m", "0755"]).arg(folder))?;
    let mode = format!("{mode:04o}");
    shown(Command::new("install").args(["-m", &mode]).args([from, to]))
}

fn debian_architecture() -> Result<&'static str> {
    match ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no package is made for {other}"),
    }
}

/// The workspace's: xtask has it too.
const VERSION: &str = env!("CARGO_PKG_VERSION");
const COMMAND: Duration = Duration::from_secs(60);
