// RUN: fuse-add-norm
module {
  func.func @step() -> tensor<?x8xf32> {
    %x = "ts.input"() {sym = "x"} : () -> tensor<?x8xf32>
    %residual = "ts.input"() {sym = "residual"} : () -> tensor<?x8xf32>
    %sum = "ts.add"(%residual, %x) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
    %w = "ts.weight"() {parameters = ["n"], sym = "n"} : () -> tensor<8xf32>
    %normed = "ts.rms_norm"(%sum, %w) {cast_before_weight = true, eps = 1.0e-6 : f64, label = "norm", one_plus_weight = false} : (tensor<?x8xf32>, tensor<8xf32>) -> tensor<?x8xf32>
    // the sum is read again: the fused operation gives it back
    %again = "ts.mul"(%sum, %normed) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
    // a second norm of the same sum, and a norm of something else, stay
    %w2 = "ts.weight"() {parameters = ["n2"], sym = "n2"} : () -> tensor<8xf32>
    %second = "ts.rms_norm"(%sum, %w2) {cast_before_weight = false, eps = 1.0e-5 : f64, one_plus_weight = true} : (tensor<?x8xf32>, tensor<8xf32>) -> tensor<?x8xf32>
    %out = "ts.mul"(%again, %second) : (tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>
    %other = "ts.rms_norm"(%out, %w2) {cast_before_weight = true, eps = 1.0e-6 : f64, one_plus_weight = false} : (tensor<?x8xf32>, tensor<8xf32>) -> tensor<?x8xf32>
    return %other : tensor<?x8xf32>
  }
}
// CHECK-NOT: ts.add"
// CHECK: [[W:%[0-9]+]] = "ts.weight"() {parameters = ["n"], sym = "n"}
// CHECK-NEXT: [[F:%[0-9]+]]:2 = "ts.add_rms_norm"(%0, %1, [[W]]) {cast_before_weight = true, eps = {{[0-9.eE-]+}} : f64, label = "norm", one_plus_weight = false}
// CHECK: [[A:%[0-9]+]] = "ts.mul"([[F]]#0, [[F]]#1)
// CHECK: "ts.rms_norm"([[F]]#0, {{.*}}cast_before_weight = false, {{.*}}one_plus_weight = true
// CHECK-NEXT: [[O:%[0-9]+]] = "ts.mul"([[A]],
// CHECK-NEXT: "ts.rms_norm"([[O]],
// CHECK-NOT: ts.add"
