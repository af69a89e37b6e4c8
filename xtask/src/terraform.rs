//! `cargo xtask terraform`: the modules held against the provider's schema, tested, and booted.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::step::{cargo, run as shown, timed};

/// Runs every step but those in `without`, and stops at the first that fails. What boots is
/// `binary`, or what cargo builds.
///
/// # Errors
/// A step fails, or `without` names none.
pub(crate) fn run(root: &Path, without: &[String], binary: Option<PathBuf>) -> Result<()> {
    for name in without {
        ensure!(STEPS.contains(&name.as_str()), "no step {name:?}: there are {STEPS:?}");
    }
    let shop = Workshop::open(root, binary)?;
    timed("tools", || shop.install())?;
    timed("schema", || shop.schema())?;
    let mut steps: Vec<&str> = STEPS.into_iter().collect();
    steps.retain(|name| !without.iter().any(|left_out| left_out == name));
    if !shop.has_terraform() {
        println!(
            "terraform is not installed, and no registry has it: names of arguments are checked \
             by a parser alone, and {NEED_TERRAFORM:?} are left out"
        );
        steps.retain(|name| !NEED_TERRAFORM.contains(name));
    }
    let provider = shop.serve()?;
    for name in steps {
        timed(name, || shop.step(name))?;
    }
    drop(provider);
    Ok(())
}

/// Where the chore keeps what it downloads and makes: nothing is written beside the modules.
struct Workshop {
    root: PathBuf,
    sources: PathBuf,
    checks: PathBuf,
    shop: PathBuf,
    binary: Option<PathBuf>,
}

/// The provider that stands in for AWS; it ends with its standard input.
struct Provider(Child);

impl Drop for Provider {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if self.0.wait().is_err() {
            println!("the provider's end was not seen");
        }
    }
}

impl Workshop {
    fn open(root: &Path, binary: Option<PathBuf>) -> Result<Self> {
        let sources = root.join("terraform");
        let shop = root.join("target/terraform");
        std::fs::create_dir_all(&shop)?;
        let checks = sources.join("check");
        Ok(Self { root: root.to_owned(), checks, sources, shop, binary })
    }

    fn has_terraform(&self) -> bool {
        self.terraform(&self.sources).arg("version").stdout(Stdio::null()).status().is_ok()
    }

    fn step(&self, name: &str) -> Result<()> {
        match name {
            "rules" => shown(
                self.python()
                    .arg(self.check("rules.py"))
                    .args([&self.schema_file(), &self.sources]),
            ),
            "fmt" => shown(self.terraform(&self.sources).args(["fmt", "-check", "-recursive"])),
            "validate" => self.each(&["modules", "examples"], |shop, folder| shop.validate(folder)),
            "test" => self.each(&["modules"], |shop, folder| {
                shown(shop.terraform(folder).args(["test", "-no-color"]))
            }),
            "apply" => self.each(&["examples"], |shop, folder| {
                shop.apply(folder, EXAMPLE, &[])?;
                if folder.join(ALSO).exists() { shop.apply(folder, ALSO, &[]) } else { Ok(()) }
            }),
            "boot" => self.boot(),
            "checkov" => shown(Command::new(self.shop.join("checkov/bin/checkov")).args([
                "--directory".as_ref(),
                self.sources.as_os_str(),
                "--framework".as_ref(),
                "terraform".as_ref(),
                "--compact".as_ref(),
                "--quiet".as_ref(),
                "--skip-download".as_ref(),
            ])),
            unknown => anyhow::bail!("no step {unknown:?}"),
        }
    }

    /// Three virtual environments, because what checkov or moto needs is in no other's interest, and
    /// the package that the schema is read from.
    fn install(&self) -> Result<()> {
        let lists =
            [("python", "requirements.txt"), ("checkov", "checkov.txt"), ("cloud", "cloud.txt")];
        for (name, list) in lists {
            let wanted = std::fs::read_to_string(self.check(list))?;
            let folder = self.shop.join(name);
            let stamp = folder.join("installed.txt");
            if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
                continue;
            }
            shown(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
            let pip = ["install", "--quiet", "--requirement"];
            shown(Command::new(folder.join("bin/pip")).args(pip).arg(self.check(list)))?;
            std::fs::write(stamp, wanted)?;
        }
        if !self.package().exists() {
            let pack = ["pack", "--silent", PACKAGE];
            shown(Command::new("npm").args(pack).current_dir(&self.shop))?;
        }
        Ok(())
    }

    fn schema(&self) -> Result<()> {
        let mut command = self.python();
        command.arg(self.check("schema.py"));
        shown(command.args([&self.package(), &self.sources, &self.schema_file()]))
    }

    fn serve(&self) -> Result<Provider> {
        let socket = self.socket();
        if socket.exists() {
            std::fs::remove_file(&socket)?;
        }
        let mut command = self.python();
        command.arg(self.check("provider.py")).args([&self.schema_file(), &socket]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the provider")?;
        let out = child.stdout.take().context("the provider has no output")?;
        let provider = Provider(child);
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        ensure!(line == "serving\n", "the provider does not serve: {line:?}");
        Ok(provider)
    }

    fn validate(&self, folder: &Path) -> Result<()> {
        let init = ["init", "-backend=false", "-input=false", "-no-color"];
        let mut command = self.terraform(folder);
        shown(command.args(init).stdout(Stdio::null()))?;
        shown(self.terraform(folder).args(["validate", "-no-color"]))
    }

    /// Applies an example to nothing, and asks that a second plan finds nothing left to change.
    fn apply(&self, folder: &Path, variables: &str, inputs: &[String]) -> Result<()> {
        let state = self.state(folder);
        if state.exists() {
            std::fs::remove_file(&state)?;
        }
        let with_inputs = |words: [&str; 4]| {
            let mut command = self.terraform(folder);
            command.args(words).arg(format!("-state={}", state.display()));
            command.arg(format!("-var-file={variables}")).args(inputs).stdout(Stdio::null());
            command
        };
        shown(&mut with_inputs(["apply", "-auto-approve", "-input=false", "-no-color"]))?;
        shown(&mut with_inputs(["plan", "-detailed-exitcode", "-input=false", "-no-color"]))
            .context("a second plan finds changes")
    }

    /// Boots what the examples rendered, with the real binary.
    fn boot(&self) -> Result<()> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "booting needs root, for network namespaces: `--without boot` leaves it out"
        );
        let rig = self.rig()?;
        let install = format!(
            "-var=install={{url=\"s3://example-artifacts/hawser\",sha256=\"{}\"}}",
            sha256(&rig.join("hawser"))?
        );
        for (example, file) in BOOTED {
            self.render(example, EXAMPLE, std::slice::from_ref(&install), &rig.join(file))?;
        }
        let mut rendered = Vec::new();
        for variables in [EXAMPLE, ALSO] {
            let state = rig.join(variables).with_extension("json");
            self.render(ASKED, variables, &[], &state)?;
            rendered.push(state);
        }
        let mut ask = self.python();
        shown(ask.arg(self.check("configs.py")).arg(rig.join("hawser")).args(rendered))?;
        shown(self.python().arg(self.check("boot.py")).arg(&rig))
    }

    /// An empty folder with the binary in it.
    fn rig(&self) -> Result<PathBuf> {
        let built = match &self.binary {
            Some(binary) => binary.clone(),
            None => {
                shown(&mut cargo(&self.root, &["build", "--quiet", "--package", "hawser"]))?;
                self.root.join("target/debug/hawser")
            }
        };
        let rig = self.shop.join("rig");
        if rig.exists() {
            std::fs::remove_dir_all(&rig)?;
        }
        std::fs::create_dir_all(&rig)?;
        // Without what a debugger needs: each of the VMs downloads it.
        let mut strip = Command::new("strip");
        shown(strip.arg("-o").arg(rig.join("hawser")).arg(&built))
            .context("stripping the binary")?;
        Ok(rig)
    }

    /// Applies an example to nothing, and writes the state that this leaves to `file`, as JSON.
    fn render(&self, example: &str, variables: &str, inputs: &[String], file: &Path) -> Result<()> {
        let folder = self.sources.join("examples").join(example);
        self.apply(&folder, variables, inputs)?;
        let mut command = self.terraform(&folder);
        let printed = command.args(["show", "-json"]).arg(self.state(&folder)).output()?;
        ensure!(printed.status.success(), "{example}: its state cannot be shown");
        std::fs::write(file, printed.stdout).with_context(|| file.display().to_string())
    }

    fn each(&self, kinds: &[&str], work: impl Fn(&Self, &Path) -> Result<()>) -> Result<()> {
        for kind in kinds {
            let mut folders: Vec<PathBuf> = std::fs::read_dir(self.sources.join(kind))?
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<std::io::Result<_>>()?;
            folders.sort();
            for folder in folders {
                work(self, &folder).with_context(|| folder.display().to_string())?;
            }
        }
        Ok(())
    }

    /// Terraform in `folder`, with the stand-in for AWS and its working files under `target`.
    fn terraform(&self, folder: &Path) -> Command {
        let provider = serde_json::json!({
            "hashicorp/aws": {
                "Protocol": "grpc",
                "ProtocolVersion": 5,
                "Pid": std::process::id(),
                "Test": true,
                "Addr": { "Network": "unix", "String": self.socket() },
            }
        });
        let name = folder.file_name().unwrap_or_default();
        let mut command = Command::new("terraform");
        command
            .current_dir(folder)
            .env("TF_REATTACH_PROVIDERS", provider.to_string())
            .env("TF_DATA_DIR", self.shop.join("data").join(name))
            .env("TF_CLI_CONFIG_FILE", "/dev/null")
            .env("TF_IN_AUTOMATION", "1")
            .env("CHECKPOINT_DISABLE", "1");
        command
    }

    fn python(&self) -> Command {
        Command::new(self.shop.join("python/bin/python"))
    }

    fn check(&self, file: &str) -> PathBuf {
        self.checks.join(file)
    }

    fn package(&self) -> PathBuf {
        self.shop.join("cdktf-provider-aws-21.22.1.tgz")
    }

    fn schema_file(&self) -> PathBuf {
        self.shop.join("schema.json")
    }

    fn socket(&self) -> PathBuf {
        self.shop.join("provider.sock")
    }

    fn state(&self, folder: &Path) -> PathBuf {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        self.shop.join(format!("{name}.tfstate"))
    }
}

fn sha256(file: &Path) -> Result<String> {
    let printed = Command::new("sha256sum").arg(file).output().context("running sha256sum")?;
    let text = String::from_utf8(printed.stdout)?;
    text.split_whitespace().next().map(str::to_owned).context("sha256sum printed nothing")
}

/// Generated from version 6.25 of Terraform's AWS provider.
const PACKAGE: &str = "@cdktf/provider-aws@21.22.1";

/// In the order they run.
const STEPS: [&str; 7] = ["rules", "fmt", "validate", "test", "apply", "boot", "checkov"];
const NEED_TERRAFORM: [&str; 5] = ["fmt", "validate", "test", "apply", "boot"];

/// Which examples boot, and what `boot.py` calls the states that they leave.
const BOOTED: [(&str, &str); 2] =
    [("one-region-vms", "vms.json"), ("ecs-fargate-service", "tasks.json")];

/// The example with gateways, whose configurations the binary is asked about.
const ASKED: &str = "two-regions";

/// What each example is applied with, and what the one with gateways is applied with besides.
const EXAMPLE: &str = "example.tfvars";
const ALSO: &str = "public.tfvars";
