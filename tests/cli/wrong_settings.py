"""Wrong settings and files, and how the line begins that each of them gives.

DIR stands for the folder of the test's files, RUN for a finished run.
"""

CASES: dict[str, tuple[str, str]] = {
    "lr_negative": ("optimizer.lr=-1", "optimizer: Invalid learning rate: -1"),
    "lr_text": ("optimizer.lr=fast", "optimizer.lr must be a number, got 'fast'"),
    "lr_nan": ("optimizer.lr=nan", "optimizer: Invalid learning rate: nan"),
    "momentum_negative": (
        "optimizer=sgd optimizer.momentum=-1",
        "optimizer: Invalid momentum value: -1",
    ),
    "betas_one": (
        "+optimizer.betas=[0.9]",
        "optimizer.betas must be a list of 2, each a number, got [0.9]",
    ),
    "betas_range": (
        "+optimizer.betas=[0.9,1.5]",
        "optimizer: Invalid beta parameter at index 1: 1.5",
    ),
    "optimizer_extra": (
        "+optimizer.nesterof=true",
        "optimizer.nesterof: Adam has no argument 'nesterof'",
    ),
    "weight_decay_neg": ("optimizer.weight_decay=-1", "optimizer: Invalid weight_decay value: -1"),
    "optimizer_unknown": (
        "optimizer=adamw2",
        "optimizer=adamw2: there is no option adamw2 of optimizer; did you mean adam?",
    ),
    "optimizer_target": (
        "optimizer._target_=torch.optim.Adum",
        "optimizer._target_: there is no torch.optim.Adum",
    ),
    "pretrain_lr": (
        "pretrain.optimizer.lr=-1",
        "the teacher: pretrain.optimizer: Invalid learning rate: -1",
    ),
    "pretrain_epochs": (
        "pretrain.trainer.max_epochs=many",
        "the teacher: pretrain.trainer.max_epochs must be a whole number or null, got",
    ),
    "fused_text": (
        "optimizer.fused=perhaps",
        "optimizer.fused must be true or false or null, got 'perhaps'",
    ),
    "epochs_text": (
        "trainer.max_epochs=ten",
        "trainer.max_epochs must be a whole number or null, got 'ten'",
    ),
    "epochs_negative": ("trainer.max_epochs=-3", "trainer.max_epochs must be positive, got -3"),
    "epochs_null": (
        "trainer.max_epochs=null",
        "training has no end: set trainer.max_epochs, max_steps or max_time",
    ),
    "epochs_zero": ("trainer.max_epochs=0", "trainer.max_epochs must be positive, got 0"),
    "precision": (
        "trainer.precision=7",
        "trainer.precision must be one of 64, 32, 16, transformer-engine,",
    ),
    "accelerator": (
        "trainer.accelerator=quantum",
        "trainer: You selected an invalid accelerator name: `accelera",
    ),
    "accelerator_gpu": ("trainer.accelerator=gpu", "trainer: No supported gpu backend found!"),
    "strategy": (
        "trainer.strategy=magic",
        "trainer: You selected an invalid strategy name: `strategy='magic'`. It must",
    ),
    "devices_negative": (
        "trainer.devices=-1",
        "trainer: `devices` selected with `CPUAccelerator` should be an int > 0.",
    ),
    "devices_text": (
        "trainer.devices=two",
        "trainer: `devices` selected with `CPUAccelerator` should be an int > 0.",
    ),
    "devices_zero": (
        "trainer.devices=0",
        "trainer: `Trainer(devices=0)` value is not a valid input using cpu",
    ),
    "trainer_extra": (
        "+trainer.max_epoch=3",
        "trainer.max_epoch: Trainer has no argument 'max_epoch'; did you mean",
    ),
    "log_every": (
        "trainer.log_every_n_steps=0",
        "trainer.log_every_n_steps must be positive, got 0",
    ),
    "max_time": (
        "trainer.max_time=soon",
        "trainer: `Timer(duration='soon')` is not a valid duration. Expected a string",
    ),
    "nodes": ("trainer.num_nodes=0", "trainer.num_nodes must be positive, got 0"),
    "clip": ("+trainer.gradient_clip_val=-1", "trainer.gradient_clip_val must be positive, got -1"),
    "accumulate": (
        "+trainer.accumulate_grad_batches=0",
        "trainer.accumulate_grad_batches must be positive, got 0",
    ),
    "val_interval": (
        "+trainer.check_val_every_n_epoch=0",
        "trainer.check_val_every_n_epoch must be positive, got 0",
    ),
    "limit_val": (
        "+trainer.limit_val_batches=0",
        "trainer.limit_val_batches must be positive, got 0",
    ),
    "seed_negative": ("seed=-1", "seed must be a whole number in 0…4294967295, got -1"),
    "seed_text": ("seed=lucky", "seed must be a whole number in 0…4294967295, got lucky"),
    "seed_huge": (
        "seed=99999999999999999999",
        "seed must be a whole number in 0…4294967295, got 99999999999999999999",
    ),
    "seed_null": ("seed=null", "seed must be a whole number in 0…4294967295, got null"),
    "pretrain_seed": (
        "pretrain.seed=-1",
        "the teacher: pretrain.seed must be a whole number in 0…4294967295, got -1",
    ),
    "batch_float": ("data.batch_size=2.5", "data.batch_size must be a whole number, got 2.5"),
    "batch_zero": ("data.batch_size=0", "data.batch_size must be at least 1, got 0"),
    "batch_huge": ("data.batch_size=1e30", "data.batch_size must be a whole number, got 1e+30"),
    "mean_text": (
        "data.mean=grey data.std=[1]",
        "data.mean must be a list, each a number or null, got 'grey'",
    ),
    "mean_alone": ("data.mean=[0.1]", "set both data.mean and data.std, or neither"),
    "views_float": ("augment.views=1.5", "augment.views must be a whole number, got 1.5"),
    "views_neg": (
        "augment.views=-1",
        "augment.shift and augment.views cannot be negative; got 0 and -1",
    ),
    "shift_neg": (
        "augment.shift=-1",
        "augment.shift and augment.views cannot be negative; got -1 and 0",
    ),
    "shift_big": ("augment.shift=99", "augment.shift=99 moves images of 28 pixels out of sight"),
    "flip_text": ("augment.flip=often", "augment.flip must be true or false, got 'often'"),
    "val_size_big": (
        "data.val_size=99999",
        "data.val_size=99999 leaves no training samples out of 1437",
    ),
    "val_size_text": (
        "data.val_size=half",
        "data.val_size must be a whole number or a number, got 'half'",
    ),
    "fraction": ("data.train_fraction=0", "data.train_fraction must lie in 0…1, got 0"),
    "exclude": ("data.exclude_classes=[11]", "data.exclude_classes: no class [11] in 0…9"),
    "data_key": (
        "data.batchsize=3",
        "there is no setting data.batchsize; did you mean data.batch_size?",
    ),
    "data_unknown": (
        "data=cifar1000",
        "data=cifar1000: there is no option cifar1000 of data; did you mean cifar100?",
    ),
    "split_seed_text": ("data.split_seed=x", "data.split_seed must be a whole number, got 'x'"),
    "data_seed_text": ("data.seed=x", "data.seed must be a whole number, got 'x'"),
    "label_million": (
        "data=arrays data.path=DIR/million.npz",
        "DIR/million.npz: y_train contains label 1000000 but has 60 samples; number",
    ),
    "label_2_40": (
        "data=arrays data.path=DIR/huge.npz",
        "DIR/huge.npz: y_train contains label 1099511627776 but has 60 samples; number",
    ),
    "arrays_pickle": (
        "data=arrays data.path=DIR/objects.npz",
        "DIR/objects.npz cannot be read as .npz: Object arrays cannot be loaded when",
    ),
    "arrays_cut": (
        "data=arrays data.path=DIR/cut.npz",
        "DIR/cut.npz is not an .npz archive, or is truncated; write one with np.savez",
    ),
    "arrays_keys": (
        "data=arrays data.path=DIR/keys.npz",
        "DIR/keys.npz has no x_train, y_train, x_test, y_test; it needs x_train,",
    ),
    "arrays_nan": (
        "data=arrays data.path=DIR/nan.npz",
        "DIR/nan.npz: x_train must be uint8, or floats in 0…1; it is float32 from nan",
    ),
    "arrays_dir": (
        "data=arrays data.path=DIR",
        "DIR is not an .npz archive, or is truncated; write one with np.savez or",
    ),
    "arrays_header": (
        "data=arrays data.path=DIR/header.npz",
        "DIR/header.npz cannot be read as .npz: Unable to allocate 227. TiB for an",
    ),
    "arrays_empty": (
        "data=arrays data.path=DIR/empty.npz",
        "DIR/empty.npz: x_train has 0 samples and y_train has 0 labels; the numbers",
    ),
    "data_target": (
        "data._target_=kd_lightning.data.digits.Digits",
        "data._target_: there is no kd_lightning.data.digits.Digits",
    ),
    "data_target_other": (
        "data._target_=torch.nn.ReLU",
        "data.batch_size: ReLU has no argument 'batch_size'",
    ),
    "no_mnist": (
        "data=mnist data.root=DIR/nothing",
        "MNIST is not in DIR/nothing and could not be downloaded: use data=digits",
    ),
    "monitor_train": (
        "monitor=train/loss",
        "monitor=train/loss is no figure of validation data; the default is",
    ),
    "monitor_unknown": (
        "monitor=val/acuracy",
        "monitor=val/acuracy is no figure of validation data; did you mean",
    ),
    "monitor_mode": ("monitor_mode=up", "monitor_mode must be min or max, got 'up'"),
    "monitor_null": (
        "monitor=null",
        "monitor=null is no figure of validation data; the default is",
    ),
    "monitor_test": (
        "monitor=test/accuracy",
        "monitor=test/accuracy is no figure of validation data; the default is",
    ),
    "T_zero": (
        "method.temperature=0",
        "method.temperature must be a positive number in 1e-15…1e15, got 0",
    ),
    "T_tiny": (
        "method.temperature=1e-300",
        "method.temperature must be a positive number in 1e-15…1e15, got 1e-300",
    ),
    "T_huge": (
        "method.temperature=1e300",
        "method.temperature must be a positive number in 1e-15…1e15, got 1e+300",
    ),
    "T_text": ("method.temperature=hot", "method.temperature must be a number, got 'hot'"),
    "T_nan": (
        "method.temperature=nan",
        "method.temperature must be a positive number in 1e-15…1e15, got nan",
    ),
    "alpha_nan": (
        "method.alpha=nan",
        "method.alpha must lie in 0…1 (weight of the response loss), got nan",
    ),
    "alpha_text": ("method.alpha=half", "method.alpha must be a number, got 'half'"),
    "response_wrong": (
        "method.response._target_=torch.nn.functional.relu",
        "method: relu() missing 1 required positional argument: 'input'",
    ),
    "response_extra": (
        "+method.response.gamma=3",
        "method.response.gamma: soft_targets has no argument 'gamma'",
    ),
    "response_null": ("method.response=null", "method.response must be an object, got null"),
    "response_bce": (
        "method.response._target_=torch.nn.functional.mse_loss",
        "method: mse_loss() missing 1 required positional argument: 'input'",
    ),
    "negatives": (
        "method=crd method.transfer.crd.negatives=0",
        "crd: negatives must be positive, got 0",
    ),
    "negatives_text": (
        "method=crd method.transfer.crd.negatives=many",
        "method.transfer.crd.negatives must be a whole number, got 'many'",
    ),
    "crd_size": ("method=crd method.transfer.crd.size=0", "crd: size must be positive, got 0"),
    "weight_neg": (
        "method=sp method.transfer.sp.weight=-1",
        "method.transfer.sp.weight must be at least 0 (weight of the term), got -1",
    ),
    "layer": (
        "method=fitnet method.transfer.fitnet.student=no.such",
        "method.transfer.fitnet: StudentCNN has no layer 'no.such'; it has features,",
    ),
    "term_lr": (
        "method=fitnet method.transfer.fitnet.lr=-1",
        "the learning rate of a term must be positive, got lr=-1",
    ),
    "transfer_loss": (
        "method=sp method.transfer.sp.loss._target_=torch.nn.functional.relu",
        "method: Boolean value of Tensor with more than one value is ambiguous",
    ),
    "transfer_text": (
        "method.transfer=sp",
        "method.transfer must be a section of settings or null, got 'sp'",
    ),
    "transfer_unknown": (
        "+transfer@method.transfer.sp=spp",
        "transfer=spp: there is no option spp of transfer; did you mean sp?",
    ),
    "power": (
        "method=at method.transfer.at.power=x",
        "there is no setting method.transfer.at.power; did you mean",
    ),
    "method_unknown": (
        "method=kdd",
        "method=kdd: there is no option kdd of method; did you mean kd?",
    ),
    "method_key": (
        "method.temprature=3",
        "there is no setting method.temprature; did you mean method.temperature?",
    ),
    "nothing": (
        "temperature=3",
        "there is no setting temperature; did you mean method.temperature?",
    ),
    "optkey": (
        "optimizer.learning_rate=0.1",
        "there is no setting optimizer.learning_rate; to add it, write",
    ),
    "schedule_text": (
        "method=annealed method.temperature.first=x",
        "there is no setting method.temperature.first; did you mean",
    ),
    "ctkd_text": (
        "method=ctkd method.temperature.span=wide",
        "method.temperature.span must be a number, got 'wide'",
    ),
    "milestones": (
        "lr_scheduler=multistep lr_scheduler.milestones=soon",
        "lr_scheduler.milestones must be a list, each a whole number, got 'soon'",
    ),
    "tmax": (
        "lr_scheduler=cosine lr_scheduler.T_max=0",
        "lr_scheduler: ZeroDivisionError: integer modulo by zero (HYDRA_FULL_ERROR=1",
    ),
    "plateau": (
        "lr_scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau",
        "lr_scheduler: Factor should be < 1.0.",
    ),
    "factor": (
        "lr_scheduler.factor=7",
        "lr_scheduler: Constant multiplicative factor expected to be between 0 and 1.",
    ),
    "max_bytes": ("cache.max_bytes=lots", "cache.max_bytes must be a number, got 'lots'"),
    "max_bytes_neg": ("cache.max_bytes=-1", "cache.max_bytes cannot be negative, got -1"),
    "cache_dtype": ("cache.dtype=int3", "cache.dtype must be one of float32, float16, got int3"),
    "cache_precision": ("cache.precision=fp8", "cache.precision must be one of float32, bf16"),
    "top_k": ("cache.top_k=0", "cache.top_k must be at least 1, got 0"),
    "store_null": ("teacher_store=null", "teacher_store must be a folder, got null"),
    "store_file": (
        "teacher_store=DIR/text.npz",
        "teacher_store=DIR/text.npz cannot be used: [Errno 17] File exists:",
    ),
    "chain_true": ("chain=true", "chain=True is no chain: see experiment=self_distillation"),
    "chain_one": ("+chain.generations=1", "chain.generations must be a whole number from 2, got 1"),
    "chain_empty": ("chain={}", "chain needs generations or assistants: see conf/experiment"),
    "callbacks_null": (
        "callbacks=null",
        "callbacks=null names no option: choose an option of callbacks=",
    ),
    "no_method": ("~method", "the section method is missing: choose an option of method="),
    "callback_bad": (
        "+callbacks.mine._target_=torch.nn.ReLU",
        "callbacks.mine is a ReLU, not a Callback",
    ),
    "callback_text": (
        "+callbacks.mine=hello",
        "callbacks.mine=hello creates nothing: it needs a _target_",
    ),
    "profile": ("profile=perhaps", "profile must be true or false, got 'perhaps'"),
    "patience": (
        "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping "
        "+callbacks.stop.monitor=val/nothing",
        "callbacks.stop.monitor=val/nothing is no figure of validation data; the",
    ),
    "task": (
        "task=segmentation",
        "task=segmentation: there is no option segmentation of task; there are",
    ),
    "width_zero": ("student.width=0", "width must be at least 1, got 0"),
    "width_float": ("student.width=1.5", "student.width must be a whole number, got 1.5"),
    "net_extra": ("+student.depth=3", "student.depth: StudentCNN has no argument 'depth'"),
    "net_unknown": (
        "net@student=resnet21",
        "net=resnet21: there is no option resnet21 of net; did you mean resnet32?",
    ),
    "hidden": (
        "net@student=mlp student.hidden=[0]",
        "MLP cannot be built as configured: hidden sizes must be at least 1, got [0];",
    ),
    "net_target": ("student._target_=torch.nn.ReLU", "student.width: ReLU has no argument 'width'"),
    "teacher_width": ("teacher.width=0", "width must be at least 1, got 0"),
    "net_tv": (
        "net@student=torchvision student.name=resnet19",
        "torchvision's networks take colour images (3×H×W), but the inputs are",
    ),
    "t_missing": ("teacher_ckpt=DIR/none.ckpt", "there is no checkpoint file DIR/none.ckpt"),
    "t_cut": ("teacher_ckpt=DIR/cut.ckpt", "the checkpoint DIR/cut.ckpt is damaged or cut short"),
    "t_code": (
        "teacher_ckpt=DIR/code.ckpt",
        "DIR/code.ckpt is not a checkpoint of weights: it is damaged, or holds objects",
    ),
    "t_nan": (
        "teacher_ckpt=DIR/nan.ckpt",
        "DIR/nan.ckpt holds weights that are not finite, such as features.0.weight",
    ),
    "t_spec": (
        "teacher_ckpt=DIR/spec.ckpt",
        "DIR/spec.ckpt does not describe the data of its network: {'shape': 'x'} is no",
    ),
    "t_empty": (
        "teacher_ckpt=DIR/empty.ckpt",
        "DIR/empty.ckpt holds another network than TeacherCNN as configured for this",
    ),
    "t_dir": ("teacher_ckpt=DIR", "there is no checkpoint file DIR/checkpoints/best.ckpt"),
    "t_two_runs": (
        "teacher_ckpt=[RUN,DIR/broken]",
        "DIR/broken/.hydra/config.yaml cannot be read: while parsing a flow node did",
    ),
    "t_two_cfg": (
        "teacher_ckpt=[RUN,DIR/foreign]",
        "DIR/foreign/.hydra/config.yaml does not describe a network model.'student'",
    ),
    "t_emptylist": ("teacher_ckpt=[]", "teacher_ckpt=[] names no checkpoint"),
    "t_int": (
        "teacher_ckpt=DIR/int.ckpt",
        "DIR/int.ckpt holds another network than TeacherCNN as configured for this",
    ),
    "t_from_null": (
        "teacher_from=null",
        "teacher_from=null names no option: choose an option of teacher_from=",
    ),
    "r_none": ("resume=DIR/nowhere", "resume=DIR/nowhere: no run was started in DIR/nowhere"),
    "r_bad_over": (
        "resume=DIR/overrides",
        "DIR/overrides/.hydra/overrides.yaml cannot be read: while parsing a flow node",
    ),
    "r_no_opt": (
        "resume=DIR/no_optimizer",
        "resume=DIR/no_optimizer/checkpoints/last.ckpt is no checkpoint of a training:",
    ),
    "r_other_opt": (
        "resume=DIR/running_optimizer optimizer=sgd",
        "resume=DIR/running_optimizer/checkpoints/last.ckpt was trained with Adam, not",
    ),
    "r_other_data": (
        "resume=DIR/running_data data=arrays data.path=DIR/three.npz",
        "resume=DIR/running_data/checkpoints/last.ckpt belongs to another network:",
    ),
    "r_other_net": (
        "resume=DIR/running_net student.width=4",
        "resume=DIR/running_net/checkpoints/last.ckpt belongs to another network:",
    ),
    "r_cut": (
        "resume=DIR/cut",
        "the checkpoint DIR/cut/checkpoints/last.ckpt is damaged or cut short",
    ),
    "r_hydra": (
        "resume=DIR/hydra",
        "DIR/hydra/.hydra/hydra.yaml cannot be read: while parsing a flow node did not",
    ),
    "r_ckpt": ("resume=DIR/cut.ckpt", "resume=DIR/cut.ckpt: no run was started in"),
    "r_other_method": (
        "resume=DIR/running_method method=crd",
        "resume=DIR/running_method/checkpoints/last.ckpt belongs to another network:",
    ),
    "r_epoch": (
        "resume=DIR/epoch",
        "resume=DIR/epoch/checkpoints/last.ckpt is damaged: its epoch is 'x'",
    ),
    "grammar": (
        "method.alpha=[1,",
        "method.alpha=[1, is not of the form key=value: no viable alternative at input",
    ),
    "grammar2": ("optimizer.lr=", "optimizer.lr must be a number, got ''"),
    "equals": ("=3", "=3 has no key"),
    "no_word": (
        "hello",
        "hello is not of the form key=value: Error parsing override 'hello' missing",
    ),
    "cycle": ("optimizer.lr=${optimizer.lr}", "Recursive interpolation detected"),
    "sweep_dir_file": (
        "hydra.run.dir=DIR/text.npz/run",
        "the run directory cannot be written ([Errno 20] Not a directory:",
    ),
    "sweep_in_single": (
        "method.alpha=0.1,0.5",
        "Ambiguous value for argument 'method.alpha=0.1,0.5' 1. To use it as a list,",
    ),
    "add_existing": (
        "+seed=3",
        "Could not append to config. An item is already at 'seed'. Either remove +",
    ),
    "config_dir": ("--config-dir DIR/nodir", "Additional config directory 'DIR/nodir' not found"),
    "missing_env": (
        "data.root=${oc.env:NOT_SET_ANYWHERE} data=mnist",
        'KeyError raised while resolving interpolation: "Environment variable',
    ),
    "t_sparse": (
        "teacher_ckpt=DIR/sparse.ckpt",
        "DIR/sparse.ckpt holds another network than TeacherCNN as configured for this",
    ),
}
