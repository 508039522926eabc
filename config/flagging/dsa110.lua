--[[
  AOFlagger strategy for one DSA-110 group and one baseline: 24 integrations of 12.9 s by 768 channels of 244 kHz.

  With so few integrations nothing can be smoothed along time but the drift of sources through the beam, so the
  background is a low-pass along frequency only, and SumThreshold works mostly along time within a channel, where
  a carrier lasts. The noise dominates single visibilities: thresholds are high, and there is no scale-invariant dilation.
]]
aoflagger.require_min_version("3.0")

function execute(input)
  local base_threshold = 1.6
  local iterations = 2
  local step = 2.0

  input:clear_mask()
  for _, polarization in ipairs(input:get_polarizations()) do
    local amplitude = input:convert_to_polarization(polarization):convert_to_complex("amplitude")
    local data = amplitude:copy()
    for i = 1, iterations do
      local factor = step ^ (iterations - i)
      aoflagger.sumthreshold(data, factor * base_threshold, factor * base_threshold, true, true)
      local by_channel = data:copy()
      aoflagger.threshold_timestep_rms(data, 5.0)
      aoflagger.threshold_channel_rms(by_channel, 4.0 * factor, true)
      data:join_mask(by_channel)
      if i < iterations then
        data:set_visibilities(amplitude)
        local coarse = aoflagger.downsample(data, 1, 4, true)
        aoflagger.low_pass_filter(coarse, 3, 31, 2.5, 5.0)
        aoflagger.upsample(coarse, data, 1, 4)
        local residual = amplitude - data
        residual:set_mask(data)
        data = residual
      end
    end
    if input:is_complex() then
      data = data:convert_to_complex("complex")
    end
    input:set_polarization_data(polarization, data)
  end
end
